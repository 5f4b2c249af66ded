//! stub
pub(super) fn upgrade_header(headers: &http::HeaderMap) -> Option<String> {
    headers.get(http::header::UPGRADE).and_then(|value| value.to_str().ok()).map(str::to_ascii_lowercase)
}
