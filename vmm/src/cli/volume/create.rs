//! `paddock volume create`.

use paddock_storage::longhorn::{Offline, VolumeOptions};
use serde_json::json;

use super::args::CreateArgs;
use super::fill::{Image, fill};
use super::{Session, VolumeFailure};
use crate::cli::ctl::render::bytes;

/// What a volume's size is a multiple of, in bytes.
const SECTOR: u64 = 4096;

/// Makes a volume.
pub fn create(session: &Session, args: &CreateArgs) -> Result<(), VolumeFailure> {
    let image = args.from.as_deref().map(Image::open).transpose()?;
    let size = size(args, image.as_ref())?;
    let options = args.which.options();
    session.ensure_wanted()?;
    Offline::new(options.clone())?.create(size)?;
    if let Some(image) = &image {
        let size = Some(size);
        fill(session, VolumeOptions { size, ..options }, image)?;
    }
    let name = args.which.name.as_str();
    let replicas: Vec<String> = args.which.replica.iter().map(ToString::to_string).collect();
    let told = json!({"volume": name, "size": size, "replicas": replicas});
    session.print(&told, |page| {
        let (size, replicas) = (bytes(size), replicas.join(", "));
        page.sentence(&format!("volume {name} of {size} is made, on {replicas}"));
    })
}

/// How large it is to be.
fn size(args: &CreateArgs, image: Option<&Image>) -> Result<u64, VolumeFailure> {
    let least = image.map(|image| image.size().next_multiple_of(SECTOR));
    match (args.size.map(|size| size.bytes()), least) {
        (Some(size), Some(least)) if size < least => Err(VolumeFailure::Usage(format!(
            "--size {size}: the image needs {least} bytes; leave --size out for that"
        ))),
        (Some(size), _) => Ok(size),
        (None, Some(least)) => Ok(least),
        (None, None) => Err(VolumeFailure::Usage("give --size or --from".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use paddock_api::spec::ByteSize;

    use super::super::args::WhichArgs;
    use super::*;

    #[test]
    fn a_volume_has_room_for_its_image() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 5000]).unwrap();
        let image = Image::open(&path).unwrap();
        let with = |size: Option<u64>| CreateArgs {
            which: WhichArgs {
                name: "v".parse().unwrap(),
                replica: Vec::new(),
                timeout: 8,
            },
            size: size.map(ByteSize::from_bytes),
            from: None,
        };
        assert_eq!(size(&with(None), Some(&image)).unwrap(), 8192);
        assert_eq!(size(&with(Some(16384)), Some(&image)).unwrap(), 16384);
        assert_eq!(size(&with(Some(4096)), None).unwrap(), 4096);
        let error = size(&with(Some(4096)), Some(&image)).unwrap_err();
        assert!(error.to_string().contains("8192"), "{error}");
        assert!(size(&with(None), None).is_err());
    }
}
