//! What every part of the DSDT is built of.
//!
//! Values of `acpi_tables` borrow what they are made of. [`Raw`] does not, so that a part can be made in a function and returned.

use acpi_tables::aml::{Method, Name};
use acpi_tables::{Aml, AmlSink};

use super::fixed::bytes;

/// `_STA`: present, enabled, shown, working.
pub(super) const ALL_WELL: u8 = 0x0F;

/// AML made earlier.
pub(super) struct Raw(Vec<u8>);

impl Raw {
    pub(super) fn new(aml: &dyn Aml) -> Self {
        Self(bytes(aml))
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// A method that one thread is in at a time.
pub(super) fn method(name: &str, arguments: u8, steps: &[Raw]) -> Raw {
    let steps = steps.iter().map(|step| step as _).collect();
    Raw::new(&Method::new(name.into(), arguments, true, steps))
}
