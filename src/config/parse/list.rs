//! Scalars, and lists in which each stands but once. Pure.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::limits::{MAX_ENTRIES, too_many};

/// Reads one scalar as text, whatever YAML would take it for.
pub(super) struct Text<V>(pub(super) V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Text<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_str(self.0)
    }
}

/// One scalar that is in no list.
pub(super) fn single<'de, T: Scalar, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(NewEntry { known: &[] })
}

/// A value that is written as one YAML scalar.
pub(super) trait Scalar: Sized + PartialEq + fmt::Display {
    /// What is to be written, for error messages.
    const EXPECTED: &str;
    fn read(text: &str) -> Result<Self, String>;
    /// Whether a list of them may be empty.
    const MAY_BE_NONE: bool = false;
    /// Whether a list with one of them needs no other.
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// A list of scalars with none twice.
pub(super) struct List<T>(pub(super) Vec<T>);

impl<'de, T: Scalar> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Scalar> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list, each entry on a line of its own after `- `: {}", T::EXPECTED)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element_seed(Text(NewEntry { known: &list }))? {
                    if list.len() == MAX_ENTRIES {
                        return Err(too_many());
                    }
                    list.push(entry);
                }
                if list.is_empty() && !T::MAY_BE_NONE {
                    return Err(de::Error::invalid_length(0, &self));
                }
                Ok(List(list))
            }

            fn visit_unit<E: de::Error>(self) -> Result<List<T>, E> {
                if T::MAY_BE_NONE {
                    return Ok(List(Vec::new()));
                }
                Err(E::invalid_length(0, &self))
            }
        }

        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

/// An entry that its list does not have yet.
struct NewEntry<'a, T> {
    known: &'a [T],
}

impl<T: Scalar> Visitor<'_> for NewEntry<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let entry = T::read(text).map_err(|problem| {
            E::custom(format_args!("`{text}` {problem}; write {}", T::EXPECTED))
        })?;
        match self.known.iter().find(|known| known.is_same(&entry)) {
            Some(known) if *known == entry => {
                Err(E::custom(format_args!("{entry} is listed twice: leave one out")))
            }
            Some(known) => Err(E::custom(format_args!(
                "{entry} is listed twice, also as {known}: leave one out"
            ))),
            None => Ok(entry),
        }
    }
}
