//! Images that are opened anew by their path.

use std::io::ErrorKind;

use super::*;

#[test]
fn an_image_is_opened_anew_unless_it_is_another() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    let path = image(directory.path(), 1 << 20);
    let options = RawOptions {
        block_size: Some(4096),
        ..RawOptions::new(&path)
    };
    let disk = RawDisk::open(&options).unwrap();
    let opener = disk.opener(&RawOptions::new(&path)).unwrap();
    let kind = || opener().map(drop).map_err(|error| error.kind());
    assert_eq!(kind(), Err(ErrorKind::ResourceBusy), "with us");
    drop(disk);
    let again = opener().unwrap();
    assert_eq!(again.capabilities().logical_block_size, 4096);
    drop(again);
    // The same file under another name, and another one under its name.
    let aside = directory.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    assert_eq!(kind(), Err(ErrorKind::NotFound));
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let error = opener().unwrap_err();
    assert!(
        error.to_string().contains("another file is there now"),
        "{error}"
    );
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(kind(), Ok(()));
}
