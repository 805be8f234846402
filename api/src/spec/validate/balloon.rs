//! The balloon.

use super::super::config::BalloonConfig;
use super::super::machine::{Balloon, Memory};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::ByteSize;

/// Pages as a balloon counts them.
const PAGE: ByteSize = ByteSize::from_bytes(4096);

/// Checks a balloon for a VM with so much memory; `None` where that is wrong itself.
pub(super) fn balloon(
    config: &BalloonConfig,
    memory: Option<&Memory>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Balloon> {
    let size = config.size.unwrap_or_default();
    let mut wrong = |detail| problems.add(at.key("size"), ProblemCode::OutOfRange, detail);
    if !size.is_multiple_of(PAGE) {
        wrong(format!(
            "the balloon's size must be a multiple of {PAGE}, not {size}"
        ));
    } else if let Some(memory) = memory.filter(|memory| size >= memory.size) {
        let all = memory.size;
        wrong(format!(
            "the balloon's size must be less than the memory, {all}, not {size}"
        ));
    }
    Some(Balloon {
        size,
        deflate_on_oom: config.deflate_on_oom.unwrap_or(false),
        free_page_reporting: config
            .free_page_reporting
            .unwrap_or(memory?.hugepages.is_none()),
    })
    .filter(|_| !problems.within(at))
}
