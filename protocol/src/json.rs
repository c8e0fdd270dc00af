//! Writing JSON text by hand, straight into a buffer.
//!
//! Events and the response object are mostly text that is JSON already: items, tools, escaped
//! deltas. Copying it costs less than any tree or struct in between.

use std::ops::Range;

use serde::Serialize;

/// Writes one object, member by member. Names must not need escaping.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Object<'a> {
    pub(crate) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out }
    }

    /// Writes members without the braces, for [`Object::members`].
    pub(crate) fn inside(out: &'a mut Vec<u8>) -> Self {
        debug_assert!(out.is_empty());
        Self { out }
    }

    pub(crate) fn value<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.name(name);
        write(self.out, value);
    }

    /// A value that is JSON text already.
    pub(crate) fn raw(&mut self, name: &str, json: &[u8]) {
        self.name(name);
        self.out.extend_from_slice(json);
    }

    /// An array of values that are JSON text already. Returns where they stand in the buffer.
    pub(crate) fn raw_array<'j>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = &'j [u8]>,
    ) -> Range<usize> {
        self.name(name);
        self.out.push(b'[');
        let start = self.out.len();
        for (index, json) in values.enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(json);
        }
        let end = self.out.len();
        self.out.push(b']');
        start..end
    }

    pub(crate) fn object(&mut self, name: &str) -> Object<'_> {
        self.name(name);
        Object::open(self.out)
    }

    /// Members that were written without braces.
    pub(crate) fn members(&mut self, members: &[u8]) {
        if !members.is_empty() {
            self.comma();
            self.out.extend_from_slice(members);
        }
    }

    pub(crate) fn close(self) {
        self.out.push(b'}');
    }

    /// The buffer, to write the value of the member `name` into.
    pub(crate) fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn comma(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{')) {
            self.out.push(b',');
        }
    }
}

/// Appends `value` as JSON. For strings, numbers and structs of them.
pub(crate) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("writing plain values to memory cannot fail");
}
