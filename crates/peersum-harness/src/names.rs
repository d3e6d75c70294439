//! The names of choices, as flags take them.

use clap::ValueEnum;
use serde::Serialize;
use serde::de::value::Error;
use serde::de::{DeserializeOwned, IntoDeserializer};

/// The name of a choice.
pub(crate) fn name_of<T: ValueEnum>(choice: &T) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The value of a flag that takes a list of choices.
pub(crate) fn list_of<T: ValueEnum>(choices: &[T]) -> String {
    let names: Vec<String> = choices.iter().map(name_of).collect();
    names.join(",")
}

/// A choice by the name that it has in JSON.
pub(crate) fn by_name<T: DeserializeOwned>(name: &str) -> Result<T, Error> {
    T::deserialize(name.into_deserializer())
}

/// The name that [`by_name`] takes.
pub(crate) fn json_name_of<T: Serialize>(choice: &T) -> String {
    let value = serde_json::to_value(choice).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
