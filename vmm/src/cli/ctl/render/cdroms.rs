//! CD-ROM drives.

use paddock_api::cdrom::Cdrom;

use super::{Cell, Colour, Page, bytes};

/// Drives, a line each.
pub fn cdroms(page: &mut Page, drives: &[Cdrom]) {
    let rows = drives.iter().map(|drive| {
        let tray = match (&drive.medium, drive.open, drive.locked) {
            (_, true, _) => Cell::coloured("open", Colour::Yellow),
            (None, ..) => Cell::new("empty"),
            (Some(_), _, true) => Cell::new("locked"),
            (Some(_), _, false) => Cell::new("closed"),
        };
        let medium = drive.medium.as_ref();
        let medium = medium.map(|path| path.display().to_string());
        vec![
            Cell::new(&drive.id),
            tray,
            Cell::new(medium.unwrap_or_default()),
            Cell::new(drive.size.map(bytes).unwrap_or_default()),
        ]
    });
    let headings = ["ID", "TRAY", "MEDIUM", "SIZE"];
    page.table(&headings, rows.collect(), "no CD-ROM drives");
}
