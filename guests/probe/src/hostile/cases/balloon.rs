//! Nonsense to a balloon: pages that are not RAM, lists of no use, reports of what is not free, statistics of anything (VIRTIO 1.2 §5.5.6).
//!
//! What the device takes away must be what it was given and no more: most cases lay a [`Witness`] around the page that goes.

use super::super::driver::{Ring, WRITE};
use super::super::rig::{PAGE, page_number};
use super::super::{Attack, Case, Expect, Kind, Rig, Stop};
use super::{Noise, WIDTHS, check, descriptor, same, storm, used, with_queue};
use std::time::Duration;

use Expect::{NeedsReset, Open, Serves};

const BALLOON: &[Kind] = &[Kind::Balloon];

const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// Where Linux looks for it when free page hints are not offered.
const REPORTING: u16 = 3;
/// Where the driver tells how much it gave, and what its free pages are filled with.
const ACTUAL: u64 = 4;
const POISON: u64 = 12;

/// How long a chain may take that is answered at once.
const SOON: Duration = Duration::from_secs(15);

pub(super) const CASES: &[Case] = &[
    Case::new("pages-behind-ram", BALLOON, Serves, |rig| {
        let end = page_number(rig.machine.ram_end());
        harmless(rig, &[end, end + 1, end + 511, end + 0x10_0000])
    }),
    Case::new("pages-over-mmio", BALLOON, Serves, |rig| {
        let bar = page_number(rig.home);
        harmless(rig, &[bar, 0xe_0000, 0xf_ec00, 0xf_ee00, 0xf_ffff])
    }),
    Case::new(
        "pages-at-the-end-of-every-address",
        BALLOON,
        Serves,
        |rig| harmless(rig, &[u32::MAX, u32::MAX - 1, 0x8000_0000, 0x7fff_ffff]),
    ),
    Case::new(
        "page-among-pages-that-are-not-ram",
        BALLOON,
        Serves,
        |rig| {
            let witness = Witness::new(rig)?;
            let page = witness.page();
            inflate(rig, &[u32::MAX, page, 0xf_ee00, u32::MAX - 1])?;
            witness.only_the_page_is_gone(rig)
        },
    ),
    Case::new("page-a-thousand-times", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        inflate(rig, &[witness.page(); 1024])?;
        witness.only_the_page_is_gone(rig)
    }),
    Case::new("page-again-and-again", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        for _ in 0..64 {
            inflate(rig, &[witness.page()])?;
        }
        witness.only_the_page_is_gone(rig)
    }),
    Case::new("list-of-an-odd-length", BALLOON, Serves, odd_lengths),
    Case::new("list-cut-into-bytes", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let list = rig.place(&witness.page().to_le_bytes())?;
        let pieces: Vec<_> = (0..4).map(|at| (list + at, 1, false)).collect();
        same("the used length", used(rig, &pieces)?, 0)?;
        witness.only_the_page_is_gone(rig)
    }),
    Case::new("list-of-half-a-million-pages", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let list = rig.place(&witness.page().to_le_bytes().repeat(0x4000))?;
        let length = used(rig, &[(list, 0x1_0000, false); 32])?;
        same("the used length", length, 0)?;
        witness.only_the_page_is_gone(rig)
    }),
    Case::new("list-that-is-writable", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let list = rig.place(&witness.page().to_le_bytes())?;
        same("the used length", used(rig, &[(list, 4, true)])?, 0)?;
        same(
            "the list",
            rig.bytes(list, 4),
            witness.page().to_le_bytes().to_vec(),
        )?;
        witness.nothing_is_gone(rig)
    }),
    Case::new("list-in-the-page-it-gives-away", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let list = witness.middle();
        rig.ram().write(list, &witness.page().to_le_bytes());
        same("the used length", used(rig, &[(list, 4, false)])?, 0)?;
        witness.only_the_page_is_gone(rig)
    }),
    Case::new("list-outside-ram", BALLOON, NeedsReset, |rig| {
        super::offer(rig, &[descriptor(1 << 45, 4, 0, 0)]);
        Ok(())
    }),
    Case::new("rings-given-away", BALLOON, Open, |rig| {
        let Ring {
            descriptors,
            available,
            used,
            ..
        } = rig.main;
        let list = [descriptors, available, used].map(page_number);
        give_away(rig, &list)
    }),
    Case::new("pages-of-noise", BALLOON, Serves, noise),
    Case::new("pages-of-noise-after-each-reset", BALLOON, Serves, |rig| {
        storm(rig.machine, |_| {
            rig.free();
            inflate_after(rig, &[u32::MAX, 0xf_ee00])
        })?;
        Ok(())
    }),
    Case::new("deflate-what-was-never-given", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let page = witness.page();
        deflate(rig, &[page, page, page + 1, 0, u32::MAX, 0xf_ee00])?;
        witness.nothing_is_gone(rig)
    })
    .unprepared(),
    Case::new("deflate-a-list-without-end", BALLOON, Serves, |rig| {
        let mut ring = with_queue(rig, DEFLATE)?;
        let list = rig.allocate(0x1_0000, 4096)?;
        answered(rig, &mut ring, &[(list, 0x1_0000, false); 60])
    })
    .unprepared(),
    Case::new("deflate-and-inflate-the-same", BALLOON, Serves, |rig| {
        let witness = Witness::new(rig)?;
        let page = witness.page();
        for _ in 0..16 {
            deflate(rig, &[page])?;
            inflate_after(rig, &[page])?;
        }
        witness.only_the_page_is_gone(rig)
    })
    .unprepared(),
    Case::new("reports-outside-ram", BALLOON, NeedsReset, |rig| {
        report_broken(rig, 1 << 45, 4096)
    })
    .unprepared(),
    Case::new(
        "reports-across-the-end-of-ram",
        BALLOON,
        NeedsReset,
        |rig| {
            let end = rig.machine.ram_end();
            report_broken(rig, end - PAGE, 8192)
        },
    )
    .unprepared(),
    Case::new("reports-that-wrap", BALLOON, NeedsReset, |rig| {
        report_broken(rig, u64::MAX - 0xfff, 8192)
    })
    .unprepared(),
    Case::new("reports-of-nothing", BALLOON, Serves, |rig| {
        reported(
            rig,
            |middle| vec![(middle, 0, true)],
            Witness::nothing_is_gone,
        )
    })
    .unprepared(),
    Case::new("reports-that-are-readable", BALLOON, Serves, |rig| {
        let pieces = |middle| vec![(middle, 4096, false)];
        reported(rig, pieces, Witness::nothing_is_gone)
    })
    .unprepared(),
    Case::new("reports-of-parts-of-pages", BALLOON, Serves, |rig| {
        let pieces = |middle| vec![(middle + 1, 4095, true), (middle - 2048, 4096, true)];
        reported(rig, pieces, Witness::nothing_is_gone)
    })
    .unprepared(),
    Case::new(
        "reports-that-begin-and-end-anywhere",
        BALLOON,
        Serves,
        |rig| {
            let pieces = |middle| vec![(middle - 4095, 3 * 4096 - 2, true)];
            reported(rig, pieces, Witness::only_the_page_is_gone)
        },
    )
    .unprepared(),
    Case::new("reports-that-overlap", BALLOON, Serves, |rig| {
        let pieces = |middle| {
            let piece = (middle, 4096, true);
            vec![piece, piece, (middle - 1, 4098, true), piece]
        };
        reported(rig, pieces, Witness::only_the_page_is_gone)
    })
    .unprepared(),
    Case::new(
        "reports-of-pages-that-are-filled",
        BALLOON,
        Serves,
        poisoned,
    )
    .unprepared(),
    Case::new("reports-of-the-rings-themselves", BALLOON, Open, |rig| {
        let mut ring = with_queue(rig, REPORTING)?;
        let length = u32::try_from(Ring::footprint(64)).unwrap_or(4096);
        let ram = rig.ram();
        ring.submit(ram, &[(ring.descriptors, length, true)]);
        rig.driver.kick(ring.queue);
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    })
    .unprepared(),
    Case::new("statistics-of-unknown-tags", BALLOON, Serves, |rig| {
        let entry = |tag: u16| [&tag.to_le_bytes()[..], &[0xff; 8]].concat();
        let bytes: Vec<u8> = (0..512_u16)
            .flat_map(|tag| entry(tag.wrapping_mul(257)))
            .collect();
        tell(rig, &bytes, u32::try_from(bytes.len()).unwrap_or(0))
    })
    .unprepared(),
    Case::new("statistics-of-an-odd-length", BALLOON, Serves, |rig| {
        for length in 0..32 {
            tell(rig, &[5; 32], length)?;
        }
        Ok(())
    })
    .unprepared(),
    Case::new("statistics-without-end", BALLOON, Serves, |rig| {
        tell(rig, &[0xff; 0x1_0000], 0x1_0000)
    })
    .unprepared(),
    Case::new("statistics-outside-ram", BALLOON, NeedsReset, |rig| {
        let mut ring = with_queue(rig, STATISTICS)?;
        ring.submit(rig.ram(), &[(1 << 45, 10, false)]);
        rig.driver.kick(ring.queue);
        Ok(())
    })
    .unprepared(),
    Case::new(
        "statistics-in-every-buffer",
        BALLOON,
        Serves,
        many_statistics,
    )
    .unprepared(),
    Case::new("statistics-and-resets", BALLOON, Serves, |rig| {
        storm(rig.machine, |_| tell(rig, &[0; 10], 10))?;
        Ok(())
    })
    .unprepared(),
    Case::new("actual-of-every-size", BALLOON, Serves, |rig| {
        let at = rig.driver.layout.device.0;
        let mut noise = Noise(17);
        storm(rig.machine, |_| {
            let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
            let offset = noise.below(20);
            rig.driver
                .function
                .write_bar(at + offset, width, noise.next());
            Ok(())
        })?;
        rig.driver.function.write_bar(at + ACTUAL, 4, u64::MAX);
        let actual = rig.driver.function.read_bar(at + ACTUAL, 4);
        same("the driver's own word", actual, u64::from(u32::MAX))
    }),
];

/// Three pages with a pattern in them: the middle one goes, or none.
struct Witness {
    first: u64,
}

const PATTERN: u8 = 0x5a;

impl Witness {
    fn new(rig: &mut Rig<'_>) -> Result<Self, Stop> {
        let first = rig.allocate(3 * PAGE, PAGE)?;
        rig.ram().write(first, &[PATTERN; 3 * 4096]);
        Ok(Self { first })
    }

    fn middle(&self) -> u64 {
        self.first + PAGE
    }

    fn page(&self) -> u32 {
        page_number(self.middle())
    }

    /// Whether each of the three is as it should be.
    fn are(&self, rig: &Rig<'_>, wanted: [u8; 3]) -> Attack {
        for (address, wanted) in (self.first..).step_by(4096).zip(wanted) {
            let wrong = rig
                .bytes(address, 4096)
                .iter()
                .filter(|byte| **byte != wanted)
                .count();
            check(wrong == 0, || {
                format!("{wrong} bytes of the page at {address:#x} are not {wanted:#x}")
            })?;
        }
        Ok(())
    }

    fn only_the_page_is_gone(&self, rig: &Rig<'_>) -> Attack {
        self.are(rig, [PATTERN, 0, PATTERN])
    }

    fn nothing_is_gone(&self, rig: &Rig<'_>) -> Attack {
        self.are(rig, [PATTERN; 3])
    }
}

fn list(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Gives pages to the device.
fn inflate(rig: &mut Rig<'_>, pages: &[u32]) -> Attack {
    let bytes = list(pages);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let place = rig.place(&bytes)?;
    same("the used length", used(rig, &[(place, length, false)])?, 0)
}

/// On a device that is set up anew.
fn inflate_after(rig: &mut Rig<'_>, pages: &[u32]) -> Attack {
    rig.bring_up()?;
    inflate(rig, pages)
}

/// Gives pages away that are no RAM: a page that is stays as it was.
fn harmless(rig: &mut Rig<'_>, pages: &[u32]) -> Attack {
    let witness = Witness::new(rig)?;
    inflate(rig, pages)?;
    witness.nothing_is_gone(rig)
}

/// Gives pages away without looking at what comes back.
fn give_away(rig: &mut Rig<'_>, pages: &[u32]) -> Attack {
    let bytes = list(pages);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let place = rig.place(&bytes)?;
    rig.main.submit(rig.ram(), &[(place, length, false)]);
    rig.driver.kick(rig.main.queue);
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// Has a chain answered on a queue of ours.
fn answered(rig: &Rig<'_>, ring: &mut Ring, pieces: &[(u64, u32, bool)]) -> Attack {
    let ram = rig.ram();
    let head = ring.submit(ram, pieces);
    rig.driver.kick(ring.queue);
    let found = ring.wait_used(ram, head, SOON);
    let length = found.map(|used| used.length);
    same("the used length", length, Some(0))
}

/// Takes pages back, from a device that is set up anew.
fn deflate(rig: &mut Rig<'_>, pages: &[u32]) -> Attack {
    let mut ring = with_queue(rig, DEFLATE)?;
    let bytes = list(pages);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let place = rig.place(&bytes)?;
    answered(rig, &mut ring, &[(place, length, false)])
}

/// Three bytes are no page; of seven, the first four are one.
fn odd_lengths(rig: &mut Rig<'_>) -> Attack {
    let witness = Witness::new(rig)?;
    let page = witness.page();
    let place = rig.place(&list(&[page, page + 1]))?;
    for length in 0..4 {
        same("the used length", used(rig, &[(place, length, false)])?, 0)?;
    }
    witness.nothing_is_gone(rig)?;
    for length in 4..8 {
        same("the used length", used(rig, &[(place, length, false)])?, 0)?;
    }
    witness.only_the_page_is_gone(rig)
}

/// Numbers that are RAM nowhere, and now and then a page of ours.
fn noise(rig: &mut Rig<'_>) -> Attack {
    let witness = Witness::new(rig)?;
    let place = rig.allocate(0x1000, 4096)?;
    let end = page_number(rig.machine.ram_end());
    let mut noise = Noise(15);
    storm(rig.machine, |_| {
        let outside = |noise: &mut Noise| {
            let page = noise.below(u64::from(u32::MAX - end)) + u64::from(end);
            u32::try_from(page).unwrap_or(u32::MAX)
        };
        let mut pages: Vec<u32> = (0..256).map(|_| outside(&mut noise)).collect();
        pages[usize::try_from(noise.below(256)).unwrap_or(0)] = witness.page();
        rig.ram().write(place, &list(&pages));
        same("the used length", used(rig, &[(place, 1024, false)])?, 0)
    })?;
    witness.only_the_page_is_gone(rig)
}

/// Reports a buffer that is no RAM.
fn report_broken(rig: &mut Rig<'_>, address: u64, length: u32) -> Attack {
    let mut ring = with_queue(rig, REPORTING)?;
    let ram = rig.ram();
    ring.describe(ram, 0, descriptor(address, length, WRITE, 0));
    ring.offer(ram, 0);
    rig.driver.kick(ring.queue);
    Ok(())
}

/// Reports pieces around the page in the middle, and looks at what is gone.
fn reported(
    rig: &mut Rig<'_>,
    pieces: impl Fn(u64) -> Vec<(u64, u32, bool)>,
    judge: fn(&Witness, &Rig<'_>) -> Attack,
) -> Attack {
    let mut ring = with_queue(rig, REPORTING)?;
    let witness = Witness::new(rig)?;
    answered(rig, &mut ring, &pieces(witness.middle()))?;
    judge(&witness, rig)
}

/// What a guest fills its free pages with must be in them when it takes them again; zeros are there by themselves.
fn poisoned(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, REPORTING)?;
    let witness = Witness::new(rig)?;
    let at = rig.driver.layout.device.0 + POISON;
    let page = [(witness.middle(), 4096, true)];
    rig.driver.function.write_bar(at, 4, 0x5a5a_5a5a);
    answered(rig, &mut ring, &page)?;
    witness.nothing_is_gone(rig)?;
    rig.driver.function.write_bar(at, 4, 0);
    answered(rig, &mut ring, &page)?;
    witness.only_the_page_is_gone(rig)
}

/// Tells statistics of `length` bytes to a device that is set up anew. The device keeps the buffer.
fn tell(rig: &mut Rig<'_>, bytes: &[u8], length: u32) -> Attack {
    rig.free();
    let mut ring = with_queue(rig, STATISTICS)?;
    let place = rig.place(bytes)?;
    ring.submit(rig.ram(), &[(place, length, false)]);
    rig.driver.kick(ring.queue);
    Ok(())
}

/// One buffer is kept, and nobody asks for another.
fn many_statistics(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, STATISTICS)?;
    let ram = rig.ram();
    let place = rig.place(&[0; 640])?;
    for _ in 0..ring.size {
        ring.submit(ram, &[(place, 640, false)]);
    }
    storm(rig.machine, |_| {
        rig.driver.kick(ring.queue);
        let back = ring.take_used(ram);
        check(back.is_none(), || {
            format!("statistics that nobody asked for: {back:?}")
        })
    })?;
    Ok(())
}
