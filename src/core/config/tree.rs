//! A configuration's JSON as a tree, and the reading of types from it with the path of what is wrong.
//!
//! The types' own derived code, which is most of what reads a configuration, is made once for this reader: made for a parser of text and
//! wrapped to know its place, it is twice as long.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::ConfigError;

/// A value. Of an object all fields are kept, also those that come twice.
pub(super) enum Tree {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Bool(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Unsigned(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Signed(value))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Float(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Tree::Object(fields))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// What is wrong, and the path to it, its last part first.
#[derive(Debug)]
pub(super) struct TreeError {
    path: Vec<String>,
    problem: String,
}

impl TreeError {
    fn below(mut self, part: String) -> TreeError {
        self.path.push(part);
        self
    }
}

impl From<TreeError> for ConfigError {
    fn from(error: TreeError) -> ConfigError {
        let mut field = String::new();
        for part in error.path.iter().rev() {
            if !field.is_empty() && !part.starts_with('[') {
                field.push('.');
            }
            field.push_str(part);
        }
        if field.is_empty() {
            field.push_str("(whole file)");
        }
        ConfigError { field, problem: error.problem }
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for TreeError {}

impl de::Error for TreeError {
    fn custom<T: fmt::Display>(problem: T) -> TreeError {
        TreeError { path: Vec::new(), problem: problem.to_string() }
    }
}

impl<'de> Deserializer<'de> for &'de Tree {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self {
            Tree::Null => visitor.visit_unit(),
            Tree::Bool(value) => visitor.visit_bool(*value),
            Tree::Unsigned(value) => visitor.visit_u64(*value),
            Tree::Signed(value) => visitor.visit_i64(*value),
            Tree::Float(value) => visitor.visit_f64(*value),
            Tree::Text(value) => visitor.visit_str(value),
            Tree::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Tree::Object(fields) => visitor.visit_map(ObjectFields { fields, next: 0 }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self {
            Tree::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        match self {
            Tree::Object(fields) => visitor.visit_map(ObjectFields { fields, next: 0 }),
            // A list of fields without names would be read as well.
            Tree::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        match self {
            Tree::Text(word) => visitor.visit_enum(Word(word)),
            _ => Err(self.unexpected(&"a word")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

impl Tree {
    fn unexpected(&self, expected: &dyn de::Expected) -> TreeError {
        let found = match self {
            Tree::Null => Unexpected::Unit,
            Tree::Bool(value) => Unexpected::Bool(*value),
            Tree::Unsigned(value) => Unexpected::Unsigned(*value),
            Tree::Signed(value) => Unexpected::Signed(*value),
            Tree::Float(value) => Unexpected::Float(*value),
            Tree::Text(value) => Unexpected::Str(value),
            Tree::List(_) => Unexpected::Seq,
            Tree::Object(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, expected)
    }
}

struct Items<'t> {
    items: &'t [Tree],
    next: usize,
}

impl<'t> SeqAccess<'t> for Items<'t> {
    type Error = TreeError;

    fn next_element_seed<T: DeserializeSeed<'t>>(&mut self, seed: T) -> Result<Option<T::Value>, TreeError> {
        let at = self.next;
        let Some(item) = self.items.get(at) else { return Ok(None) };
        self.next = at.saturating_add(1);
        seed.deserialize(item).map(Some).map_err(|error| error.below(format!("[{at}]")))
    }
}

struct ObjectFields<'t> {
    fields: &'t [(String, Tree)],
    next: usize,
}

impl<'t> MapAccess<'t> for ObjectFields<'t> {
    type Error = TreeError;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, TreeError> {
        let Some((name, _)) = self.fields.get(self.next) else { return Ok(None) };
        let key: StrDeserializer<'_, TreeError> = de::IntoDeserializer::into_deserializer(name.as_str());
        seed.deserialize(key).map(Some).map_err(|error| error.below(name.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, TreeError> {
        let Some((name, value)) = self.fields.get(self.next) else {
            return Err(de::Error::custom("a field has no value"));
        };
        self.next = self.next.saturating_add(1);
        seed.deserialize(value).map_err(|error| error.below(name.clone()))
    }
}

/// One of some words.
struct Word<'t>(&'t str);

impl<'t> EnumAccess<'t> for Word<'t> {
    type Error = TreeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'t>>(self, seed: V) -> Result<(V::Value, Self), TreeError> {
        let word: StrDeserializer<'_, TreeError> = de::IntoDeserializer::into_deserializer(self.0);
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'t> VariantAccess<'t> for Word<'t> {
    type Error = TreeError;

    fn unit_variant(self) -> Result<(), TreeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'t>>(self, _: T) -> Result<T::Value, TreeError> {
        Err(de::Error::custom("is one word"))
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, _: V) -> Result<V::Value, TreeError> {
        Err(de::Error::custom("is one word"))
    }

    fn struct_variant<V: Visitor<'t>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, TreeError> {
        Err(de::Error::custom("is one word"))
    }
}
