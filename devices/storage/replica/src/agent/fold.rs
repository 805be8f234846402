//! Putting a layer's data into the one below it, and giving back what is covered. On a thread of its own; the volume is served meanwhile, and
//! reads the same at each moment: what changes below is covered by what is above.

use std::io;

use super::Progress;
use crate::error::{Error, Result};
use crate::files::image::Image;
use crate::files::memory::Aligned;
use crate::volume::replica::Replica;

/// Bytes that are copied at once, and of which the extents are asked for at once.
const PIECE: usize = 1 << 20;
const STRETCH: u64 = 1 << 30;

fn fail<'a>(doing: &'static str, image: &'a Image) -> impl Fn(io::Error) -> Error + 'a {
    move |error| Error::io(doing, image.name().as_ref(), error)
}

/// Opens both, and makes the lower one as large as the upper one.
fn open(replica: &Replica, upper: &str, lower: &str) -> Result<(Image, Image)> {
    let upper = replica.image(upper)?;
    let mut lower = replica.image(lower)?;
    if lower.size() > upper.size() {
        let problem = format!(
            "{} is larger than {}, which is above it",
            lower.name(),
            upper.name()
        );
        return Err(Error::refused(problem));
    }
    let grown = lower.grow(upper.size());
    grown.map_err(fail("grow", &lower))?;
    Ok((upper, lower))
}

/// Calls for each range of data of an image, in order, and counts a hundred for all of it.
fn for_data(
    image: &Image,
    progress: &Progress,
    mut each: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let size = image.size().max(1);
    let mut start = 0;
    let mut told = 0;
    while start < size {
        let end = (start + STRETCH).min(size);
        for range in image.data(start, end).map_err(fail("look at", image))? {
            each(range.start, range.end)?;
        }
        let now = u64::try_from(u128::from(end) * 100 / u128::from(size)).unwrap_or(100);
        progress.add(now - told);
        told = now;
        start = end;
    }
    Ok(())
}

/// Copies the data of `upper` into `lower`, durably.
pub(super) fn fold(replica: &Replica, upper: &str, lower: &str, progress: &Progress) -> Result<()> {
    let (upper, lower) = open(replica, upper, lower)?;
    let mut buffer = Aligned::new(PIECE);
    for_data(&upper, progress, |start, end| {
        let mut next = start;
        while next < end {
            let length = usize::try_from(end - next).map_or(PIECE, |left| left.min(PIECE));
            let bytes = &mut buffer.bytes_mut()[..length];
            upper.read_at(bytes, next).map_err(fail("read", &upper))?;
            lower.write_at(bytes, next).map_err(fail("write", &lower))?;
            next += length as u64;
        }
        Ok(())
    })?;
    lower.sync().map_err(fail("sync", &lower))
}

/// Gives back what of `lower` is covered by `upper`.
pub(super) fn prune(
    replica: &Replica,
    upper: &str,
    lower: &str,
    progress: &Progress,
) -> Result<()> {
    let (upper, lower) = open(replica, upper, lower)?;
    for_data(&upper, progress, |start, end| {
        // What covers is on stable storage before what is covered goes.
        upper.sync().map_err(fail("sync", &upper))?;
        lower.punch(start, end).map_err(fail("punch", &lower))?;
        Ok(())
    })
}
