//! Targets for fuzzing: what reads the beginnings of files that strangers made, and what a guest's agent says. They panic when a
//! claim does not hold.

use crate::backup_file;
use crate::disk::header;
use crate::error::Error;
use crate::qemu::still;

/// The beginning of a backup, and of a disk image: what is taken fits the file, and names nothing outside it.
pub fn file_header(data: &[u8]) {
    let length = data.len() as u64 + 32;
    if let Ok((found, parts_at)) = backup_file::parse(data, length) {
        let parts: u64 = found.parts.iter().map(|part| part.bytes).sum();
        assert_eq!(parts_at + parts + 32, length);
        assert!(found.parts.iter().all(|part| !part.name.contains('/') && !part.name.starts_with('.')));
    }
    if let Ok(found) = header::parse(data, length) {
        assert!(found.virtual_bytes <= header::VIRTUAL_SIZE_MAX);
    }
}

/// A line that a guest's agent wrote: what is told of it is short, and nothing that a terminal would obey.
pub fn guest_agent(data: &[u8]) {
    if let Err(Error::Refused { message, .. }) = still::understand(data) {
        assert!(message.chars().count() <= still::MESSAGE_CHARACTERS_MAX);
        assert!(!message.chars().any(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use testkit::fuzzing::smoke;

    #[test]
    fn whatever_a_guest_says_is_understood_or_refused() {
        let refused = |line: &[u8]| super::still::understand(line).unwrap_err().to_string();
        assert!(refused(br#"{"error":{"desc":"no\u001b[2Jdisk"}}"#).contains("no[2Jdisk"));
        assert!(refused(format!(r#"{{"error":{{"desc":"{}"}}}}"#, "x".repeat(5000)).as_bytes()).len() < 1000);
        let corpus: [&[u8]; 4] = [
            br#"{"return": 3}"#,
            br#"{"error": {"class": "GenericError", "desc": "no such command"}}"#,
            br#"{"error": ["\u0007\u0000", {"desc": 1}]}"#,
            br#"[[[{"return": {"return": null}}]]]"#,
        ];
        smoke(&corpus, 20_000, super::guest_agent);
    }

    #[test]
    fn headers_of_any_content_are_read_or_refused() {
        let text = format!(
            "{{\"format\":1,\"program\":\"\",\"takenAt\":\"\",\"machine\":\"a\",\"description\":{{}},\"mark\":\"\",\"since\":null,\
             \"parts\":[{{\"role\":\"disk\",\"name\":\"root\",\"virtualBytes\":512,\"bytes\":0,\"sha256\":\"{}\"}}]}}",
            "0".repeat(64)
        );
        let length = u32::try_from(text.len()).unwrap();
        let whole = [b"NUEEDISK".as_slice(), &length.to_le_bytes(), text.as_bytes()].concat();
        assert!(super::backup_file::parse(&whole, whole.len() as u64 + 32).is_ok());
        let layer = super::header::HEADER_BYTES.min(4096);
        smoke(&[&whole, &crate::disk::create::empty_layer(1 << 20)[..layer]], 20_000, super::file_header);
    }
}
