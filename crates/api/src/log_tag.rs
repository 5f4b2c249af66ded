//! The tag of a container's log, as Docker's option `tag` writes it. Pure.
//!
//! `Source:` Docker, "Customize log driver output".

use crate::ContainerSpec;

/// Fills in a tag: `{{.Name}}` and its like, on a machine of this name. `None` for fields that are none.
pub fn expand(template: &str, spec: &ContainerSpec, id: &str, hostname: &str) -> Option<String> {
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
        rest = behind;
    }
    text.push_str(rest);
    Some(text)
}
