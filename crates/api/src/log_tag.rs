//! The tag of a container's log, as Docker's option `tag` writes it. Pure.
//!
//! `Source:` Docker, "Customize log driver output".

use crate::ContainerSpec;

/// Longest template. Units: bytes.
pub const TEMPLATE_BYTES_MAX: usize = 4 << 10;
/// Longest tag: a short template may name a long command many times. Units: bytes.
const TAG_BYTES_MAX: usize = 64 << 10;

/// Fills in a tag: `{{.Name}}` and its like, on a machine of this name. `None` for fields that are none, and for what is
/// too long.
pub fn expand(template: &str, spec: &ContainerSpec, id: &str, hostname: &str) -> Option<String> {
    if template.len() > TEMPLATE_BYTES_MAX {
        return None;
    }
    let digits = |text: &str| text.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (field, behind) = after.split_once("}}")?;
        text.push_str(before);
        text.push_str(&match field.trim() {
            ".ID" => digits(id),
            ".FullID" => id.to_owned(),
            ".Name" => spec.name.clone(),
            ".ImageID" => digits(&spec.image_id),
            ".ImageFullID" => spec.image_id.clone(),
            ".ImageName" => spec.image.clone(),
            ".DaemonName" => "docker".to_owned(),
            ".Hostname" => hostname.to_owned(),
            ".Command" => spec.command.join(" "),
            _ => return None,
        });
        if text.len() > TAG_BYTES_MAX {
            return None;
        }
        rest = behind;
    }
    text.push_str(rest);
    (text.len() <= TAG_BYTES_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_template_nor_a_tag_grows_without_end() {
        let command = vec!["x".repeat(TAG_BYTES_MAX / 2)];
        let spec = ContainerSpec { name: "web".into(), command, ..ContainerSpec::default() };
        let expand = |template: &str| expand(template, &spec, "id", "host");
        assert_eq!(expand("{{.Name}}@{{.Hostname}}").as_deref(), Some("web@host"));
        assert_eq!(expand("{{.Command}}{{.Command}}").map(|tag| tag.len()), Some(TAG_BYTES_MAX));
        assert_eq!(expand("{{.Command}}{{.Command}}-"), None);
        assert_eq!(expand(&"{{.Command}}".repeat(300)), None);
        assert_eq!(expand(&"x".repeat(TEMPLATE_BYTES_MAX)).map(|tag| tag.len()), Some(TEMPLATE_BYTES_MAX));
        assert_eq!(expand(&"x".repeat(TEMPLATE_BYTES_MAX + 1)), None);
        assert_eq!(expand("{{.Nothing}}"), None);
    }
}
