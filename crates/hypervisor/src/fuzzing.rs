//! A target for fuzzing: what reads the beginnings of files that strangers made. It panics when a claim does not hold.

use crate::backup_file;
use crate::disk::header;

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

#[cfg(test)]
mod tests {
    use testkit::fuzzing::smoke;

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
