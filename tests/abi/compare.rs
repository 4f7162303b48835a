//! What has changed from one ABI to another, in words.

use std::collections::BTreeSet;

use crate::text::{Abi, Field, Item, Layout, Signature};

/// What a later library is to a program of the release.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// A program that was compiled with the release breaks.
    pub(crate) broken: Vec<String>,
    /// There is more than in the release.
    pub(crate) added: Vec<String>,
}

pub(crate) fn changes(release: &Abi, today: &Abi) -> Changes {
    let mut changes = Changes::default();
    for (name, was) in &release.items {
        match today.get(name) {
            None => changes.broken.push(format!("{name} was removed")),
            Some(is) => changes.item(name, was, is),
        }
    }
    let added = today.items.iter().filter(|(name, _)| release.get(name).is_none());
    changes.added.extend(added.map(|(name, _)| format!("{name} is new")));
    changes
}

/// The functions of an ABI that a library does not export.
pub(crate) fn not_exported(abi: &Abi, exported: &BTreeSet<&str>) -> Vec<String> {
    let functions = abi.functions().filter(|(name, _)| !exported.contains(name));
    functions.map(|(name, _)| format!("{name} is not exported by the library")).collect()
}

impl Changes {
    fn item(&mut self, name: &str, was: &Item, is: &Item) {
        match (was, is) {
            (Item::Function(was), Item::Function(is)) => self.signature(name, was, is),
            (Item::Callback(was), Item::Callback(is)) => self.signature(name, was, is),
            (Item::Struct(was), Item::Struct(is)) => self.layout(name, was, is),
            (Item::Constant(was), Item::Constant(is)) => self.same(name, "was", was, "is", is),
            (Item::Type(was), Item::Type(is)) => self.same(name, "was", was, "is", is),
            (Item::Initializer, Item::Initializer) => {}
            _ => self.broken.push(format!("{name} was {}, is {}", kind(was), kind(is))),
        }
    }

    fn same<T: PartialEq + std::fmt::Display>(&mut self, name: &str, before: &str, was: T, now: &str, is: T) {
        if was != is {
            self.broken.push(format!("{name} {before} {was}, {now} {is}"));
        }
    }

    /// Names of parameters are for those who read.
    fn signature(&mut self, name: &str, was: &Signature, is: &Signature) {
        self.same(name, "returned", &was.returns, "returns", &is.returns);
        let (before, now) = (was.parameters.len(), is.parameters.len());
        if before != now {
            self.broken.push(format!("{name} had {before} parameters, has {now}"));
        }
        for (i, (was, is)) in was.parameters.iter().zip(&is.parameters).enumerate() {
            let what = format!("{name}, parameter {} ({}),", i + 1, was.name);
            self.same(&what, "was", &was.kind, "is", &is.kind);
        }
    }

    /// A struct that begins with `size` may grow at its end.
    fn layout(&mut self, name: &str, was: &Layout, is: &Layout) {
        self.same(name, "was aligned to", was.align, "is aligned to", is.align);
        for before in &was.fields {
            let field = format!("{name}.{}", before.what.name);
            let Some(now) = is.fields.iter().find(|now| now.what.name == before.what.name) else {
                self.broken.push(format!("{field} was removed"));
                continue;
            };
            self.same(&field, "was at", before.offset, "is at", now.offset);
            self.same(&field, "was", &before.what.kind, "is", &now.what.kind);
            if before.what.kind == now.what.kind {
                self.same(
                    &field,
                    "had",
                    format!("{} bytes", before.size),
                    "has",
                    format!("{} bytes", now.size),
                );
            }
        }
        let may_grow = was.fields.first().is_some_and(|first| first.what.to_string() == "uint32_t size");
        let list = if may_grow && is.size >= was.size { &mut self.added } else { &mut self.broken };
        if was.size != is.size {
            list.push(format!("{name} had {} bytes, has {} bytes", was.size, is.size));
        }
        let is_old = |field: &Field| was.fields.iter().any(|before| before.what.name == field.what.name);
        let new = is.fields.iter().filter(|field| !is_old(field));
        list.extend(new.map(|field| format!("{name}.{} is new", field.what.name)));
    }
}

fn kind(item: &Item) -> &'static str {
    match item {
        Item::Function(_) => "a function",
        Item::Callback(_) => "a callback",
        Item::Constant(_) => "a constant",
        Item::Type(_) => "a type",
        Item::Struct(_) => "a struct",
        Item::Initializer => "an initializer",
    }
}
