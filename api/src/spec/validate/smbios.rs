//! What the machine calls itself to its guest.

use super::super::config::VmConfig;
use super::super::machine::Smbios;
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::ValueError;
use super::{at_most, optional};

/// The longest serial number and asset tag, in bytes.
const MAX_TEXT: usize = 1024;
/// A structure has at most so many strings.
const MAX_STRINGS: usize = 255;
/// What all OEM strings may take, in bytes: about half of what there is room for, as the processors take some.
const MAX_STRINGS_SIZE: usize = 32 << 10;

/// Checks it.
pub(super) fn smbios(
    config: &VmConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Smbios> {
    let Some(given) = &config.smbios else {
        return Some(Smbios::default());
    };
    let short = |text: &str| check(text, MAX_TEXT);
    let serial = optional(problems, &at.key("serial"), given.serial.as_deref(), short);
    let asset_tag = optional(
        problems,
        &at.key("asset_tag"),
        given.asset_tag.as_deref(),
        short,
    );
    let at_strings = at.key("oem_strings");
    at_most(
        problems,
        &at_strings,
        given.oem_strings.len(),
        MAX_STRINGS,
        "OEM strings",
    )?;
    for (index, text) in given.oem_strings.iter().enumerate() {
        problems.check(&at_strings.index(index), check(text, MAX_STRINGS_SIZE));
    }
    let size: usize = given.oem_strings.iter().map(|text| text.len() + 1).sum();
    if size > MAX_STRINGS_SIZE {
        let detail = format!(
            "the OEM strings take {size} bytes, each with a zero; there is room for {MAX_STRINGS_SIZE}"
        );
        problems.add(at_strings, ProblemCode::OutOfRange, detail);
    }
    Some(Smbios {
        serial: serial?,
        asset_tag: asset_tag?,
        oem_strings: given.oem_strings.clone(),
    })
    .filter(|_| !problems.within(at))
}

/// A text of a structure: not empty, and without what would end it.
fn check(text: &str, most: usize) -> Result<String, ValueError> {
    if text.is_empty() {
        return Err(ValueError::malformed("the text is empty; leave it out"));
    }
    if text.len() > most {
        return Err(ValueError::out_of_range(format!(
            "the text has {} bytes; at most {most} are possible",
            text.len()
        )));
    }
    if text.contains(char::is_control) {
        return Err(ValueError::malformed(
            "the text must not contain control characters such as new lines",
        ));
    }
    Ok(text.to_owned())
}
