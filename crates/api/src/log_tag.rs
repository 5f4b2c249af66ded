//! The tag of a container's log, as Docker's option `tag` writes it, and the bounds of its other patterns. Pure.
//!
//! `Source:` Docker, "Customize log driver output"; moby, `daemon/logger/loginfo.go`.

use std::fmt;

use crate::ContainerSpec;

/// Longest template. Units: bytes.
pub const TEMPLATE_BYTES_MAX: usize = 4 << 10;
/// Longest tag: a short template may name a long command many times. Units: bytes.
const TAG_BYTES_MAX: usize = 64 << 10;
/// Longest pattern of names. Units: bytes.
pub const PATTERN_TEXT_BYTES_MAX: usize = 4 << 10;
/// Memory that one compiled pattern of names may take. Units: bytes.
pub const PATTERN_BYTES_MAX: usize = 256 << 10;
/// What Docker's templates know beside what is filled in here.
const OTHER_FIELDS: [&str; 8] = [
    "Config",
    "ContainerEntrypoint",
    "ContainerArgs",
    "ContainerCreated",
    "ContainerEnv",
    "ContainerLabels",
    "ExtraAttributes",
    "LogPath",
];

/// Why a template gives no tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such field.
    UnknownField {
        /// Its name.
        field: String,
        /// Where it stands; the first line is 1.
        line: usize,
        /// Bytes before it in that line.
        column: usize,
    },
    /// `{{` without `}}`.
    Unclosed {
        /// Where; the first line is 1.
        line: usize,
    },
    /// More than fields.
    NotUnderstood,
    /// The template or the tag.
    TooLong,
}

impl fmt::Display for Problem {
    /// In the words of Docker, which are those of Go's templates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField { field, line, column } => write!(
                f,
                "template: log-tag:{line}:{column}: executing \"log-tag\" at <.{field}>: can't evaluate field {field} in \
                 type *logger.Info"
            ),
            Self::Unclosed { line } => write!(f, "template: log-tag:{line}: unclosed action"),
            Self::NotUnderstood => f.write_str("the tag has more than fields"),
            Self::TooLong => f.write_str("the tag is too long"),
        }
    }
}

/// Fills in a tag: `{{.Name}}` and its like, on a machine of this name.
///
/// Errors: [`Problem`].
pub fn expand(template: &str, spec: &ContainerSpec, id: &str, hostname: &str) -> Result<String, Problem> {
    if template.len() > TEMPLATE_BYTES_MAX {
        return Err(Problem::TooLong);
    }
    let digits = |text: &str| text.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let start = template.len() - after.len();
        let Some((field, behind)) = after.split_once("}}") else {
            return Err(Problem::Unclosed { line: 1 + template[..start].matches('\n').count() });
        };
        text.push_str(before);
        text.push_str(&match field.trim() {
            ".ID" => digits(id),
            ".FullID" | ".ContainerID" => id.to_owned(),
            ".Name" => spec.name.clone(),
            ".ContainerName" => format!("/{}", spec.name),
            ".ImageID" => digits(&spec.image_id),
            ".ImageFullID" | ".ContainerImageID" => spec.image_id.clone(),
            ".ImageName" | ".ContainerImageName" => spec.image.clone(),
            ".DaemonName" => "docker".to_owned(),
            ".Hostname" => hostname.to_owned(),
            ".Command" => spec.command.join(" "),
            other => return Err(not_filled_in(template, start + field.len() - field.trim_start().len(), other)),
        });
        if text.len() > TAG_BYTES_MAX {
            return Err(Problem::TooLong);
        }
        rest = behind;
    }
    text.push_str(rest);
    if text.len() <= TAG_BYTES_MAX { Ok(text) } else { Err(Problem::TooLong) }
}

/// Why there is nothing for `action`, which stands at this byte.
fn not_filled_in(template: &str, at: usize, action: &str) -> Problem {
    let is_name = |name: &&str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    match action.strip_prefix('.').filter(is_name) {
        Some(field) if !OTHER_FIELDS.contains(&field) => {
            let before = &template[..at];
            let line = 1 + before.matches('\n').count();
            let column = at - before.rfind('\n').map_or(0, |end| end + 1);
            Problem::UnknownField { field: field.to_owned(), line, column }
        }
        _ => Problem::NotUnderstood,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_template_nor_a_tag_grows_without_end() {
        let command = vec!["x".repeat(TAG_BYTES_MAX / 2)];
        let spec = ContainerSpec { name: "web".into(), command, ..ContainerSpec::default() };
        let expand = |template: &str| expand(template, &spec, "id", "host");
        assert_eq!(expand("{{.Name}}@{{.Hostname}}").as_deref(), Ok("web@host"));
        assert_eq!(expand("{{.Command}}{{.Command}}").map(|tag| tag.len()), Ok(TAG_BYTES_MAX));
        assert_eq!(expand("{{.Command}}{{.Command}}-"), Err(Problem::TooLong));
        assert_eq!(expand(&"{{.Command}}".repeat(300)), Err(Problem::TooLong));
        assert_eq!(expand(&"x".repeat(TEMPLATE_BYTES_MAX)).map(|tag| tag.len()), Ok(TEMPLATE_BYTES_MAX));
        assert_eq!(expand(&"x".repeat(TEMPLATE_BYTES_MAX + 1)), Err(Problem::TooLong));
    }

    #[test]
    fn what_is_wrong_is_told_as_docker_tells_it() {
        let spec = ContainerSpec { name: "web".into(), ..ContainerSpec::default() };
        let problem = |template: &str| expand(template, &spec, "id", "host").unwrap_err();
        assert_eq!(
            problem("{{.Nope}}").to_string(),
            "template: log-tag:1:2: executing \"log-tag\" at <.Nope>: can't evaluate field Nope in type *logger.Info"
        );
        assert_eq!(
            problem("a\n{{.ID}} {{ .Nope }}"),
            Problem::UnknownField { field: "Nope".into(), line: 2, column: 11 }
        );
        assert_eq!(problem("{{.Name").to_string(), "template: log-tag:1: unclosed action");
        // Docker knows what these mean; here they are not filled in.
        for other in ["{{.ContainerEnv}}", "{{upper .Name}}", "{{range .}}", "{{}}", "{{.Name.X}}", "{{.}}"] {
            assert_eq!(problem(other), Problem::NotUnderstood, "{other}");
        }
    }
}
