//! Closed sets of names: one spelling each, for files, command lines and manifests alike.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::Visitor;
use thiserror::Error;

/// A name that is not in its set. The message lists the valid ones.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {what} `{given}`; valid: {valid}")]
pub struct ParseNameError {
    /// What the name was read as, e.g. `dtype`.
    pub what: &'static str,
    /// The name as given.
    pub given: String,
    /// The valid names, or the form they have.
    pub valid: String,
}

impl ParseNameError {
    pub(crate) fn new(what: &'static str, given: impl fmt::Display, valid: &str) -> Self {
        Self {
            what,
            given: given.to_string(),
            valid: valid.to_owned(),
        }
    }
}

/// Implements `ALL`, `as_str`, `Display`, `FromStr` and serde (as the name) for an enum of unit
/// variants.
macro_rules! vocabulary {
    ($type:ident, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, in order.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The name, as it stands in file names, entry points and manifests.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($type::$variant => $name),+
                }
            }
        }

        $crate::vocabulary::name_traits!($type);

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::vocabulary::ParseNameError;

            fn from_str(given: &str) -> Result<Self, Self::Err> {
                match given {
                    $($name => Ok($type::$variant),)+
                    _ => Err($crate::vocabulary::ParseNameError::new(
                        $what,
                        given,
                        &[$($name),+].join(", "),
                    )),
                }
            }
        }
    };
}

/// Implements serde through `Display` and `FromStr`.
macro_rules! name_traits {
    ($type:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::vocabulary::NameVisitor::new())
            }
        }
    };
}

/// Reads a name where it stands: a manifest has thousands, too many to copy each.
pub(crate) struct NameVisitor<T>(PhantomData<T>);

impl<T> NameVisitor<T> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: FromStr<Err = ParseNameError>> Visitor<'_> for NameVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<T, E> {
        name.parse().map_err(E::custom)
    }
}

pub(crate) use {name_traits, vocabulary};
