//! GET EVENT STATUS NOTIFICATION (MMC-6 §6.7): what happened to the medium, for drivers that ask every now and then.

use super::{Answer, Cdb, Checked, Drive, News, Sense, answer, be16};

/// The class of events of the medium, the only one there is, and its bit.
const MEDIA: u8 = 4;
const MEDIA_BIT: u8 = 1 << MEDIA;
/// No event of the classes asked for.
const NO_EVENT_AVAILABLE: u8 = 0x80;

impl Drive {
    pub(super) fn get_event_status(&mut self, cdb: &Cdb) -> Checked<Answer> {
        let (polled, classes) = (cdb[1] & 1 != 0, cdb[4]);
        if !polled {
            // It would have to be held until something happens.
            return Err(Sense::INVALID_FIELD);
        }
        let allocated = u32::from(be16(cdb, 7));
        if classes & MEDIA_BIT == 0 {
            return Ok(answer(vec![0, 2, NO_EVENT_AVAILABLE, MEDIA_BIT], allocated));
        }
        // Told to one who has no room for it, it would be lost.
        let news = if allocated < 5 {
            None
        } else {
            self.news.take()
        };
        let event = match news {
            None => 0,
            Some(News::EjectRequest) => 1,
            Some(News::NewMedium) => 2,
            Some(News::Removed) => 3,
        };
        let status = u8::from(self.open) | u8::from(self.is_ready()) << 1;
        let data = vec![0, 6, MEDIA, MEDIA_BIT, event, status, 0, 0];
        Ok(answer(data, allocated))
    }
}
