//! What the journal is told of a container, for the log driver `journald`. Pure, but for the look whether there is a
//! journal.
//!
//! `Source:` Docker, "Journald logging driver".

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use api::ContainerSpec;
use runtime::JournalConfig;

use super::log_options::{self, PREFIX};
use crate::error::{Error, Result};

/// Name of the driver.
pub const DRIVER: &str = "journald";
/// Where journals listen.
const SOCKET: &str = "/run/systemd/journal/socket";
/// A bound on what is sent with each entry; the kernel takes datagrams of some 200 KiB. Units: bytes.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Where a container's output goes beside its own log, which is what `docker logs` reads.
///
/// Errors: there is no journal, in Docker's words; the tag is none.
pub fn config(spec: &ContainerSpec, id: &str) -> Result<Option<JournalConfig>> {
    if spec.log_driver != DRIVER {
        return Ok(None);
    }
    let socket = Path::new(SOCKET);
    UnixDatagram::unbound()
        .and_then(|probe| probe.connect(socket))
        .map_err(|_| Error::Invalid(format!("{PREFIX}: journald is not enabled on this host")))?;
    let fields = fields(spec, id)?;
    let size: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > FIELDS_BYTES_MAX {
        return Err(Error::Invalid(format!("{PREFIX}: labels and variables of more than {FIELDS_BYTES_MAX} bytes")));
    }
    Ok(Some(JournalConfig { socket: socket.to_owned(), fields }))
}

fn fields(spec: &ContainerSpec, id: &str) -> Result<Vec<(String, String)>> {
    let short: String = id.chars().take(12).collect();
    let option = |name: &str| spec.log_options.get(name).map_or("", String::as_str);
    let tag = match option("tag") {
        "" => short.clone(),
        template => expand(template, spec, id)?,
    };
    let mut fields: Vec<(String, String)> = [
        ("CONTAINER_ID", short),
        ("CONTAINER_ID_FULL", id.to_owned()),
        ("CONTAINER_NAME", spec.name.clone()),
        ("CONTAINER_TAG", tag.clone()),
        ("IMAGE_NAME", spec.image.clone()),
        ("SYSLOG_IDENTIFIER", tag),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let own =
        |name: &str| matches!(name, "" | "MESSAGE" | "PRIORITY" | "CONTAINER_PARTIAL_MESSAGE" | "SYSLOG_TIMESTAMP");
    let mut add = |name: &str, value: &str| {
        let name = field_name(name);
        if !own(&name) && !fields.iter().any(|(known, _)| *known == name) {
            fields.push((name, value.to_owned()));
        }
    };
    for (name, value) in log_options::named(spec)? {
        add(name, value);
    }
    Ok(fields)
}

/// A name as the journal takes it: capitals, digits and underscores, none at the front.
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    upper.collect::<String>().trim_start_matches('_').to_owned()
}

/// Fills in a tag.
fn expand(template: &str, spec: &ContainerSpec, id: &str) -> Result<String> {
    api::log_tag::expand(template, spec, id, &crate::machine::hostname())
        .map_err(|problem| Error::Invalid(format!("{PREFIX}: {problem}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(options: &[(&str, &str)]) -> ContainerSpec {
        ContainerSpec {
            name: "web".into(),
            image: "shop/web:1".into(),
            image_id: format!("sha256:{}", "ab".repeat(32)),
            log_driver: DRIVER.into(),
            log_options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            labels: [("com.shop.tier".to_owned(), "front".to_owned()), ("priority".to_owned(), "0".to_owned())].into(),
            environment: vec!["MODE=fast".into(), "MODEL=x".into()],
            ..ContainerSpec::default()
        }
    }

    fn value(options: &[(&str, &str)], name: &str) -> Option<String> {
        let fields = fields(&spec(options), &"1234567890ab".repeat(5)).unwrap();
        fields.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    #[test]
    fn tags_are_short_ids_or_what_the_template_says() {
        assert_eq!(value(&[], "CONTAINER_TAG").unwrap(), "1234567890ab");
        let tag = [("tag", "{{.ImageName}}/{{ .Name }}-{{.ImageID}}")];
        assert_eq!(value(&tag, "SYSLOG_IDENTIFIER").unwrap(), "shop/web:1/web-abababababab");
        for bad in ["{{.Nope}}", "{{.Name", "{{range .}}"] {
            assert!(fields(&spec(&[("tag", bad)]), "id").is_err(), "{bad}");
        }
    }

    #[test]
    fn chosen_labels_and_variables_are_fields_and_replace_none() {
        let chosen = [("labels", "com.shop.tier,priority,nosuch"), ("env", "MODE,CONTAINER_NAME")];
        assert_eq!(value(&chosen, "COM_SHOP_TIER").unwrap(), "front");
        assert_eq!(value(&chosen, "MODE").unwrap(), "fast");
        assert_eq!(value(&chosen, "PRIORITY"), None);
        assert_eq!(value(&[], "MODE"), None);
        let patterns = [("labels-regex", "^com"), ("env-regex", "^MODEL?$")];
        assert_eq!(value(&patterns, "COM_SHOP_TIER").unwrap(), "front");
        assert_eq!(value(&patterns, "MODEL").unwrap(), "x");
        assert_eq!(value(&[("env-regex", "L")], "MODE"), None);
        assert!(fields(&spec(&[("env-regex", "(")]), "id").unwrap_err().to_string().contains("error parsing regexp"));
        assert_eq!(field_name("__a-b"), "A_B");
    }
}
