//! The names of choices, as flags take them.

use clap::ValueEnum;
use serde::de::value::Error;
use serde::de::{DeserializeOwned, IntoDeserializer};

/// The name of a choice.
pub(crate) fn name_of<T: ValueEnum>(choice: &T) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// A choice by the name that it has in JSON.
pub(crate) fn by_name<T: DeserializeOwned>(name: &str) -> Result<T, Error> {
    T::deserialize(name.into_deserializer())
}
