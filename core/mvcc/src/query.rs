//! How a query is answered: bounds, order, limit, and which part of what is found.

use alloc::vec::Vec;
use core::cmp::Ordering;

use bytes::Bytes;

use crate::model::{KeyValue, Order, OrderBy, Part, Query, RangeResult, Revision};

impl Query {
    /// Answers it from the key-values of its range, which come in key order. What is counted is the
    /// whole range: as in etcd, neither limit nor bounds matter to the count.
    pub fn answer<'a>(&self, found: impl Iterator<Item = &'a KeyValue>) -> RangeResult {
        self.answer_with(found, KeyValue::clone)
    }

    /// The same from what `read` makes key-values of.
    pub(crate) fn answer_with<'a, V: 'a>(
        &self,
        mut found: impl Iterator<Item = &'a V>,
        read: impl Fn(&V) -> KeyValue,
    ) -> RangeResult {
        if self.part == Part::Count {
            return RangeResult { count: found.count(), ..RangeResult::default() };
        }
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let keep = if self.order.is_some() || self.bounded() { usize::MAX } else { limit };
        let mut kvs: Vec<KeyValue> = found.by_ref().take(keep).map(read).collect();
        let count = kvs.len() + found.count();
        let mut more = count > kvs.len();
        kvs.retain(|kv| {
            within(self.modified, kv.mod_revision) && within(self.created, kv.create_revision)
        });
        if let Some(order) = self.order {
            kvs.sort_by(|a, b| order.compare(a, b));
        }
        if kvs.len() > limit {
            kvs.truncate(limit);
            more = true;
        }
        if self.part == Part::Keys {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResult { kvs, count, more }
    }

    fn bounded(&self) -> bool {
        let none = (Revision(0), Revision(0));
        self.modified != none || self.created != none
    }
}

fn within((from, to): (Revision, Revision), revision: Revision) -> bool {
    revision >= from && (to == Revision(0) || revision <= to)
}

impl Order {
    fn compare(self, a: &KeyValue, b: &KeyValue) -> Ordering {
        let ordering = match self.by {
            OrderBy::Key => a.key.cmp(&b.key),
            OrderBy::Version => a.version.cmp(&b.version),
            OrderBy::Create => a.create_revision.cmp(&b.create_revision),
            OrderBy::Mod => a.mod_revision.cmp(&b.mod_revision),
            OrderBy::Value => a.value.cmp(&b.value),
        };
        if self.descending { ordering.reverse() } else { ordering }
    }
}
