//! The way from the process to a guest that is up, in times. Plain data, the same on both sides of the socket.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When things happened first, each in microseconds since the process started; absent what has not happened yet. The last four
/// are about the guest and start over with each reset, so that `first_instruction_us` less `last_reset_us` is how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// When the process started, in milliseconds since 1970.
    pub process_started_ms: u64,
    /// Clients could connect to the API. Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_ready_us: Option<u64>,
    /// The VM was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_created_us: Option<u64>,
    /// The last reset of the VM began, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset_us: Option<u64>,
    /// The machine was there, with its memory, its devices and the kernel in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_built_us: Option<u64>,
    /// The first vCPU was about to run the guest's first instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_instruction_us: Option<u64>,
    /// The guest printed something, on the serial port or the virtio console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_console_byte_us: Option<u64>,
    /// The guest's user space was up: a program opened one of the ports of `console.ports`, as guest agents do when they start. Kernels do
    /// not by themselves. Absent where the VM has no such port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_up_us: Option<u64>,
}

impl Timeline {
    /// The times in their order, each by the name it has in metrics.
    #[must_use]
    pub fn steps(&self) -> [(&'static str, Option<u64>); 7] {
        [
            ("api_ready", self.api_ready_us),
            ("vm_created", self.vm_created_us),
            ("last_reset", self.last_reset_us),
            ("machine_built", self.machine_built_us),
            ("first_instruction", self.first_instruction_us),
            ("first_console_byte", self.first_console_byte_us),
            ("init_up", self.init_up_us),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_named_as_in_json() {
        let timeline = Timeline {
            process_started_ms: 1,
            api_ready_us: Some(2),
            vm_created_us: Some(3),
            last_reset_us: Some(4),
            machine_built_us: Some(5),
            first_instruction_us: Some(6),
            first_console_byte_us: Some(7),
            init_up_us: Some(8),
        };
        let shown = json!(timeline);
        for (name, time) in timeline.steps() {
            assert_eq!(shown[format!("{name}_us")], json!(time));
        }
        assert_eq!(shown.as_object().unwrap().len(), 1 + timeline.steps().len());
        assert_eq!(json!(Timeline::default()), json!({"process_started_ms": 0}));
    }
}
