//! JSON as the manifest's reader takes it apart: a tree that borrows from the text and knows where each object stands.
//!
//! A process reads the manifest before its first launch, and `serde_json::Value` spends most of that time on a map and a
//! string of its own for every field.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::read::SchemaError;
use crate::vocabulary::ParseNameError;

/// The fields of an object, in the order of the text.
type Fields<'a> = Vec<(Cow<'a, str>, Node<'a>)>;

/// Room for the fields of most objects: a list grows from four otherwise.
const FIELDS: usize = 8;

/// The most values of one text, ten times those of the whole matrix for ten architectures. Without a bound the tree of a hostile text would take a
/// hundred times the text's memory.
const MAX_VALUES: u32 = 1 << 17;

/// One JSON value, as far as a manifest uses it.
pub(super) enum Node<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Boolean(bool),
    List(Vec<Node<'a>>),
    Object(Fields<'a>),
    /// Null, and numbers that are negative or no whole ones: no field may be that.
    Other,
}

impl<'a> Node<'a> {
    /// The tree of a whole text.
    pub(super) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        let left = Cell::new(MAX_VALUES);
        let mut reader = serde_json::Deserializer::from_str(text);
        let node = NodeReader { left: &left }.deserialize(&mut reader)?;
        reader.end()?;
        Ok(node)
    }
}

/// Reads one value and all within it.
#[derive(Clone, Copy)]
struct NodeReader<'l> {
    /// How many more values are read.
    left: &'l Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for NodeReader<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| {
            D::Error::custom(format_args!("it has more than {MAX_VALUES} values"))
        })?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeReader<'_> {
    type Value = Node<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Node::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Node::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Node::Other)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Node::Boolean(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Node::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(Name(name)) = object.next_key()? {
            if fields.is_empty() {
                fields.reserve(FIELDS);
            }
            fields.push((name, object.next_value_seed(self)?));
        }
        Ok(Node::Object(fields))
    }
}

/// A field's name. `Cow` itself always copies.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a field's name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}

/// Where an object stands. Put into words only for an error.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The object that it is a field of; `None` for the whole text.
    parent: Option<&'a Place<'a>>,
    field: &'a str,
    /// Its number in that field's list.
    index: Option<usize>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        if parent.parent.is_some() {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.field)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// A JSON object that knows its place, so that errors can name it.
pub(super) struct Object<'a> {
    place: Place<'a>,
    fields: &'a [(Cow<'a, str>, Node<'a>)],
}

impl<'a> Object<'a> {
    /// The whole text.
    pub(super) fn root(node: &'a Node<'a>) -> Result<Self, SchemaError> {
        let place = Place {
            parent: None,
            field: "",
            index: None,
        };
        Self::new(place, node)
    }

    fn new(place: Place<'a>, node: &'a Node<'a>) -> Result<Self, SchemaError> {
        match node {
            Node::Object(fields) => Ok(Self { place, fields }),
            _ => Err(SchemaError::WrongType {
                field: match place.parent {
                    Some(_) => place.to_string(),
                    None => ".".to_owned(),
                },
                expected: "an object",
            }),
        }
    }

    fn child(&self, field: &'a str, index: Option<usize>) -> Place<'_> {
        Place {
            parent: Some(&self.place),
            field,
            index,
        }
    }

    /// The name of a field with its place, as `modules[3].sha256`.
    pub(super) fn field(&self, name: &str) -> String {
        Place {
            parent: Some(&self.place),
            field: name,
            index: None,
        }
        .to_string()
    }

    fn value(&self, name: &str) -> Result<&'a Node<'a>, SchemaError> {
        let mut given = self.fields.iter().filter(|(given, _)| given == name);
        match (given.next(), given.next()) {
            (Some((_, value)), None) => Ok(value),
            (None, _) => Err(SchemaError::MissingField {
                field: self.field(name),
            }),
            // Readers differ in which of the two counts, so neither may.
            (Some(_), Some(_)) => Err(SchemaError::Duplicate {
                what: format!("the field `{}`", self.field(name)),
            }),
        }
    }

    fn wrong_type(&self, name: &str, expected: &'static str) -> SchemaError {
        SchemaError::WrongType {
            field: self.field(name),
            expected,
        }
    }

    pub(super) fn string(&self, name: &str) -> Result<&'a str, SchemaError> {
        match self.value(name)? {
            Node::Text(text) => Ok(text),
            _ => Err(self.wrong_type(name, "a string")),
        }
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, SchemaError> {
        match self.value(name)? {
            Node::Boolean(value) => Ok(*value),
            _ => Err(self.wrong_type(name, "true or false")),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, SchemaError> {
        match self.value(name)? {
            Node::Number(number) => Ok(*number),
            _ => Err(self.wrong_type(name, "a whole number from 0 up")),
        }
    }

    pub(super) fn number_up_to(&self, name: &str, limit: u64) -> Result<u64, SchemaError> {
        let found = self.number(name)?;
        if found > limit {
            return Err(SchemaError::TooLarge {
                field: self.field(name),
                found,
                limit,
            });
        }
        Ok(found)
    }

    pub(super) fn number32(&self, name: &str) -> Result<u32, SchemaError> {
        let number = self.number_up_to(name, u64::from(u32::MAX))?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    pub(super) fn name<T: FromStr<Err = ParseNameError>>(
        &self,
        name: &str,
    ) -> Result<T, SchemaError> {
        let given = self.string(name)?;
        given.parse().map_err(|error| SchemaError::Unknown {
            field: self.field(name),
            error,
        })
    }

    pub(super) fn must_be(&self, name: &str, expected: &str) -> Result<(), SchemaError> {
        let found = self.string(name)?;
        if found == expected {
            return Ok(());
        }
        Err(SchemaError::Mismatch {
            field: self.field(name),
            found: found.to_owned(),
            expected: expected.to_owned(),
        })
    }

    pub(super) fn object(&self, name: &'a str) -> Result<Object<'_>, SchemaError> {
        Object::new(self.child(name, None), self.value(name)?)
    }

    fn list(&self, name: &str) -> Result<&'a [Node<'a>], SchemaError> {
        match self.value(name)? {
            Node::List(items) => Ok(items),
            _ => Err(self.wrong_type(name, "a list")),
        }
    }

    pub(super) fn objects(&self, name: &'a str) -> Result<Vec<Object<'_>>, SchemaError> {
        let items = self.list(name)?.iter().enumerate();
        items
            .map(|(index, item)| Object::new(self.child(name, Some(index)), item))
            .collect()
    }

    pub(super) fn strings(&self, name: &'a str) -> Result<Vec<String>, SchemaError> {
        let items = self.list(name)?.iter().enumerate();
        items
            .map(|(index, item)| match item {
                Node::Text(text) => Ok(text.clone().into_owned()),
                _ => Err(SchemaError::WrongType {
                    field: self.child(name, Some(index)).to_string(),
                    expected: "a string",
                }),
            })
            .collect()
    }
}
