//! `paddock volume inspect`.

use paddock_storage::longhorn::Offline;

use super::args::WhichArgs;
use super::{Session, VolumeFailure, render};

/// Shows what the replicas have.
pub fn inspect(session: &Session, args: &WhichArgs) -> Result<(), VolumeFailure> {
    let found = Offline::new(args.options())?.survey()?;
    session.ensure_wanted()?;
    let json = render::Volume::new(args.name.as_str(), &found);
    session.print(&json, |page| render::volume(page, &json))
}
