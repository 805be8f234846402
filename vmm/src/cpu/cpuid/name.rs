//! What the processor calls itself, for tables that say so in words.

use kvm_bindings::CpuId;

/// The processor's names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessorName {
    /// Leaf 0, such as "GenuineIntel".
    pub vendor: String,
    /// Leaves 8000_0002h to 4, such as "AMD EPYC 7763 64-Core Processor"; empty where there are none.
    pub brand: String,
    /// EAX and EDX of leaf 1.
    pub signature: (u32, u32),
}

impl ProcessorName {
    /// As `cpuid` has it.
    #[must_use]
    pub fn of(cpuid: &CpuId) -> Self {
        let leaf = |function| {
            let mut leaves = cpuid.as_slice().iter();
            let found = leaves.find(|leaf| leaf.function == function);
            found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        };
        let [_, ebx, ecx, edx] = leaf(0);
        let brand: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(leaf).collect();
        let [eax, _, _, edx1] = leaf(1);
        Self {
            vendor: text(&[ebx, edx, ecx]),
            brand: text(&brand),
            signature: (eax, edx1),
        }
    }
}

/// The printable characters of registers, up to the first zero, without spaces around.
fn text(registers: &[u32]) -> String {
    let bytes = registers.iter().flat_map(|register| register.to_le_bytes());
    let text: String = bytes
        .take_while(|byte| *byte != 0)
        .map(char::from)
        .filter(|c| matches!(c, ' '..='~'))
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn names_are_read_from_registers() {
        let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
        let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let cpuid = CpuId::from_entries(&[
            leaf(0, [1, word(b"Auth"), word(b"cAMD"), word(b"enti")]),
            leaf(1, [0xa00f11, 0, 0, 0x178b_fbff]),
            leaf(
                0x8000_0002,
                [
                    word(b"  AM"),
                    word(b"D EP"),
                    word(b"YC\x01 "),
                    word(b"7763"),
                ],
            ),
            leaf(0x8000_0003, [word(b" \0xx"), 0, 0, 0]),
        ])
        .unwrap();
        let expected = ProcessorName {
            vendor: "AuthenticAMD".to_owned(),
            brand: "AMD EPYC 7763".to_owned(),
            signature: (0xa00f11, 0x178b_fbff),
        };
        assert_eq!(ProcessorName::of(&cpuid), expected);
        let empty = CpuId::from_entries(&[]).unwrap();
        assert_eq!(ProcessorName::of(&empty), ProcessorName::default());
    }
}
