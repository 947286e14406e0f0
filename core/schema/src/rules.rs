//! Default rules, parsed.
use crate::table::Schema;
#[derive(Debug, Default)]
pub(crate) struct Rules {}
impl Rules {
    pub(crate) fn builtin(_schema: &Schema) -> Rules {
        Rules {}
    }
}
