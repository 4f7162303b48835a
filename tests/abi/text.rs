//! An ABI in words: what a program that was compiled with the headers relies on, and its text in abi.txt.

use std::collections::BTreeMap;
use std::fmt;

/// What the headers declare, by name, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Abi {
    pub(crate) items: Vec<(String, Item)>,
    /// The header that begins at an item, for those who read the text.
    pub(crate) pages: BTreeMap<usize, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Function(Signature),
    /// A type of pointers to functions of the caller's.
    Callback(Signature),
    Constant(i128),
    /// Another name of a type; a struct that C cannot look into is "opaque".
    Type(String),
    Struct(Layout),
    /// A macro that sets the size of its struct, and all else to 0.
    Initializer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) returns: String,
    pub(crate) parameters: Vec<Declaration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) offset: usize,
    pub(crate) size: usize,
    pub(crate) what: Declaration,
}

/// A parameter or a field: `const float *loads` has the kind "const float *", `int64_t shape[8]` "int64_t[8]".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl Abi {
    pub(crate) fn get(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|(other, _)| other == name).map(|(_, item)| item)
    }

    pub(crate) fn structs(&self) -> impl Iterator<Item = (&str, &Layout)> {
        self.items.iter().filter_map(|(name, item)| match item {
            Item::Struct(layout) => Some((name.as_str(), layout)),
            _ => None,
        })
    }

    pub(crate) fn functions(&self) -> impl Iterator<Item = (&str, &Signature)> {
        self.items.iter().filter_map(|(name, item)| match item {
            Item::Function(signature) => Some((name.as_str(), signature)),
            _ => None,
        })
    }

    /// From the text of an abi.txt.
    pub(crate) fn parse(text: &str) -> Abi {
        let mut abi = Abi { items: Vec::new(), pages: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(page) = line.strip_prefix("## ") {
                abi.pages.insert(abi.items.len(), page.into());
            } else if let Some(part) = line.strip_prefix("  ") {
                let item = abi.items.last_mut().map(|(_, item)| item);
                item.and_then(|item| add(item, part)).unwrap_or_else(|| panic!("not of an abi.txt: {line}"));
            } else if !line.starts_with('#') {
                abi.items.push(begin(line).unwrap_or_else(|| panic!("not of an abi.txt: {line}")));
            }
        }
        abi
    }
}

/// An item from its first line.
fn begin(line: &str) -> Option<(String, Item)> {
    let (kind, rest) = line.split_once(' ')?;
    let (name, what) = rest.split_once(": ")?;
    let signature = || Signature { returns: what.into(), parameters: Vec::new() };
    let item = match kind {
        "function" => Item::Function(signature()),
        "callback" => Item::Callback(signature()),
        "constant" => Item::Constant(what.parse().ok()?),
        "type" => Item::Type(what.into()),
        "macro" => Item::Initializer,
        "struct" => {
            let (size, align) = what.split_once(" bytes, aligned to ")?;
            Item::Struct(Layout { size: size.parse().ok()?, align: align.parse().ok()?, fields: Vec::new() })
        }
        _ => return None,
    };
    Some((name.into(), item))
}

/// A parameter or a field from its line.
fn add(item: &mut Item, line: &str) -> Option<()> {
    match item {
        Item::Function(signature) | Item::Callback(signature) => {
            signature.parameters.push(Declaration::parse(line)?);
        }
        Item::Struct(layout) => {
            let (offset, rest) = line.strip_prefix("at ")?.split_once(", ")?;
            let (size, what) = rest.split_once(" bytes: ")?;
            let (offset, size) = (offset.parse().ok()?, size.parse().ok()?);
            layout.fields.push(Field { offset, size, what: Declaration::parse(what)? });
        }
        _ => return None,
    }
    Some(())
}

impl Declaration {
    /// From C, of which `struct` and odd spaces are left out.
    pub(crate) fn parse(text: &str) -> Option<Declaration> {
        let text = text.replace('*', " * ");
        let words: Vec<&str> = text.split_whitespace().filter(|&word| word != "struct").collect();
        let (last, before) = words.split_last()?;
        let (name, array) = last.split_at(last.find('[').unwrap_or(last.len()));
        let kind = before.join(" ").replace("* *", "**");
        Some(Declaration { kind: kind + array, name: name.into() })
    }

    /// As C declares a thing of this kind that has another name.
    pub(crate) fn of(&self, name: &str) -> String {
        let (kind, array) = self.kind.split_at(self.kind.find('[').unwrap_or(self.kind.len()));
        let space = if kind.ends_with('*') { "" } else { " " };
        format!("{kind}{space}{name}{array}")
    }
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of(&self.name))
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, item)) in self.items.iter().enumerate() {
            if let Some(page) = self.pages.get(&i) {
                writeln!(f, "\n## {page}")?;
            }
            match item {
                Item::Function(signature) => write!(f, "function {name}{signature}")?,
                Item::Callback(signature) => write!(f, "callback {name}{signature}")?,
                Item::Constant(number) => writeln!(f, "constant {name}: {number}")?,
                Item::Type(what) => writeln!(f, "type {name}: {what}")?,
                Item::Initializer => writeln!(f, "macro {name}: size, then 0")?,
                Item::Struct(Layout { size, align, fields }) => {
                    writeln!(f, "struct {name}: {size} bytes, aligned to {align}")?;
                    for Field { offset, size, what } in fields {
                        writeln!(f, "  at {offset}, {size} bytes: {what}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, ": {}", self.returns)?;
        self.parameters.iter().try_for_each(|parameter| writeln!(f, "  {parameter}"))
    }
}
