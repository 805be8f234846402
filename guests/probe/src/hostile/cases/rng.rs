//! Nonsense to an entropy device (VIRTIO 1.2 §5.4.6).

use super::super::{Attack, Case, Expect, Kind, Rig};
use super::{check, same, used};

use Expect::Serves;

const RNG: &[Kind] = &[Kind::Rng];

pub(super) const CASES: &[Case] = &[
    Case::new("request-that-is-readable", RNG, Serves, |rig| {
        let place = rig.place(&[0x5a; 64])?;
        same("the used length", used(rig, &[(place, 64, false)])?, 0)?;
        check(rig.bytes(place, 64) == [0x5a; 64], || {
            "entropy is in a buffer that is not writable".to_owned()
        })
    }),
    Case::new(
        "request-with-something-readable-first",
        RNG,
        Serves,
        |rig| {
            let place = rig.place(&[0x5a; 64])?;
            let length = used(rig, &[(place, 32, false), (place + 32, 32, true)])?;
            same("the used length", length, 32)?;
            check(rig.bytes(place, 32) == [0x5a; 32], || {
                "entropy is in a buffer that is not writable".to_owned()
            })
        },
    ),
    Case::new("request-of-one-byte", RNG, Serves, |rig| {
        let place = rig.place(&[0x5a; 16])?;
        same("the used length", used(rig, &[(place, 1, true)])?, 1)?;
        check(rig.bytes(place + 1, 15) == [0x5a; 15], || {
            "the device writes behind its buffer".to_owned()
        })
    }),
    Case::new("request-in-sixty-pieces", RNG, Serves, |rig| {
        let place = rig.allocate(0x1000, 4096)?;
        let pieces: Vec<_> = (0..60).map(|at| (place + at * 2, 1, true)).collect();
        same("the used length", used(rig, &pieces)?, 60)
    }),
    Case::new("request-of-many-mebibytes", RNG, Serves, large),
];

/// Served in part: no more than what is there.
fn large(rig: &mut Rig<'_>) -> Attack {
    let place = rig.allocate(0x10_0000, 4096)?;
    let pieces = [(place, 0x10_0000, true); 32];
    let length = used(rig, &pieces)?;
    check((1..=0x200_0000).contains(&length), || {
        format!("{length} bytes are said to be written")
    })
}
