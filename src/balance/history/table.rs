//! Rows of equally many numbers in JSON, `[[1, 2], [3, 4]]`, read into one array and checked on the way.
//!
//! Nothing is kept of a number but its four bytes, so that a large file does not become a larger tree. The error of a
//! number says where it is: in which field, row and column, and serde_json adds the line.

use std::fmt::{self, Write};
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::is_load;
use crate::balance::cluster::{EMPTY, SLOTS_MAX};
use crate::balance::goal::LAYERS_MAX;

/// `[num_rows, num_columns]`, row major.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) num_rows: usize,
    pub(super) num_columns: usize,
    pub(super) values: Vec<T>,
}

/// What tables are made of.
pub(super) trait Cell: Copy {
    /// What a number must be.
    const RANGE: &'static str;
    /// The number, if it is that.
    fn from_number(number: f64) -> Option<Self>;
}

impl Cell for f32 {
    const RANGE: &'static str = "must be finite and not negative";

    fn from_number(number: f64) -> Option<f32> {
        // -0 becomes 0, which is written back without a sign.
        is_load(number).then_some(number as f32 + 0.0)
    }
}

impl Cell for u32 {
    const RANGE: &'static str = "must be an expert, or -1 for none";

    fn from_number(number: f64) -> Option<u32> {
        match number {
            -1.0 => Some(EMPTY),
            _ => {
                (number.fract() == 0.0 && (0.0..f64::from(EMPTY)).contains(&number)).then_some(number as u32)
            }
        }
    }
}

/// For `#[serde(deserialize_with)]`: the loads of a field that is called so.
pub(super) fn expert_load<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Table<f32>>, D::Error> {
    optional_rows(deserializer, "expert_load")
}

/// Likewise.
pub(super) fn p2l_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Table<u32>>, D::Error> {
    optional_rows(deserializer, "p2l_map")
}

/// Likewise.
pub(super) fn logical_expert_load<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Table<f32>, D::Error> {
    deserializer.deserialize_seq(Rows { field: "logical_expert_load", cell: PhantomData })
}

fn optional_rows<'de, T: Cell, D: Deserializer<'de>>(
    deserializer: D,
    field: &'static str,
) -> Result<Option<Table<T>>, D::Error> {
    deserializer.deserialize_option(OptionalRows(Rows { field, cell: PhantomData }))
}

/// Appends `[[1,2],[3,4]]`.
pub(super) fn write<T: Copy, N: fmt::Display>(
    text: &mut String,
    row_len: usize,
    values: &[T],
    number: fn(T) -> N,
) {
    text.push('[');
    for (row, values) in values.chunks_exact(row_len).enumerate() {
        text.push_str(if row > 0 { ",[" } else { "[" });
        for (column, &value) in values.iter().enumerate() {
            let _ = write!(text, "{}{}", if column > 0 { "," } else { "" }, number(value));
        }
        text.push(']');
    }
    text.push(']');
}

/// A load as text: the shortest digits that come back to the same float32, never with an exponent.
pub(super) struct Digits(pub(super) f32);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // The same digits, found sooner.
        let whole = self.0 as u32;
        if whole < 1 << 24 && whole as f32 == self.0 {
            return whole.fmt(f);
        }
        self.0.fmt(f)
    }
}

struct OptionalRows<T>(Rows<T>);

impl<'de, T: Cell> Visitor<'de> for OptionalRows<T> {
    type Value = Option<Table<T>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self.0).map(Some)
    }
}

struct Rows<T> {
    field: &'static str,
    cell: PhantomData<T>,
}

impl<'de, T: Cell> Visitor<'de> for Rows<T> {
    type Value = Table<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} to be rows of numbers", self.field)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Table<T>, A::Error> {
        let field = self.field;
        let mut table = Table { num_rows: 0, num_columns: 0, values: Vec::new() };
        while let Some(len) =
            rows.next_element_seed(Row { field, row: table.num_rows, values: &mut table.values })?
        {
            if table.num_rows == 0 {
                table.num_columns = len;
            } else if len != table.num_columns {
                let (row, columns) = (table.num_rows, table.num_columns);
                return Err(A::Error::custom(format!("{field}[{row}] has {len} numbers, must be {columns}")));
            }
            table.num_rows += 1;
            if table.num_rows > LAYERS_MAX {
                return Err(A::Error::custom(format!("{field} has more than {LAYERS_MAX} rows")));
            }
        }
        if table.values.is_empty() {
            return Err(A::Error::custom(format!("{field} is empty, must have a row per layer")));
        }
        Ok(table)
    }
}

/// A row, which is appended to `values`; its length.
struct Row<'a, T> {
    field: &'static str,
    row: usize,
    values: &'a mut Vec<T>,
}

impl<'de, T: Cell> DeserializeSeed<'de> for Row<'_, T> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Cell> Visitor<'de> for Row<'_, T> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}[{}] to be a row of numbers", self.field, self.row)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<usize, A::Error> {
        let (field, row, mut len) = (self.field, self.row, 0);
        while let Some(number) = numbers.next_element_seed(Number { field, row, column: len })? {
            let Some(value) = T::from_number(number) else {
                return Err(A::Error::custom(format!("{field}[{row}][{len}] is {number}, {}", T::RANGE)));
            };
            self.values.push(value);
            len += 1;
            if len > SLOTS_MAX {
                return Err(A::Error::custom(format!("{field}[{row}] has more than {SLOTS_MAX} numbers")));
            }
        }
        Ok(len)
    }
}

/// Any number of JSON.
struct Number {
    field: &'static str,
    row: usize,
    column: usize,
}

impl<'de> DeserializeSeed<'de> for Number {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_f64(self)
    }
}

impl Visitor<'_> for Number {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}[{}][{}] to be a number", self.field, self.row, self.column)
    }

    fn visit_u64<E>(self, number: u64) -> Result<f64, E> {
        Ok(number as f64)
    }

    fn visit_i64<E>(self, number: i64) -> Result<f64, E> {
        Ok(number as f64)
    }

    fn visit_f64<E>(self, number: f64) -> Result<f64, E> {
        Ok(number)
    }
}
