//! The administrator's kubeconfig, with everything inside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Error, Pki, PkiOptions, files, write_private};

/// Writes the kubeconfig when it is missing, or when what it should hold has changed.
pub(super) fn ensure(pki: &Pki, options: &PkiOptions, renewed: bool) -> Result<(), Error> {
    let existing = files::read(&options.kubeconfig)?;
    let server_line = format!("    server: {}\n", options.server);
    let ca_line = format!("    certificate-authority-data: {}\n", STANDARD.encode(&pki.ca_pem));
    let current = existing.as_ref().is_some_and(|text| text.contains(&server_line) && text.contains(&ca_line));
    if current && !renewed {
        return Ok(());
    }
    let encoded = |name: &str| -> Result<String, Error> {
        let path = pki.path(name);
        let text = files::read(&path)?.ok_or(Error::Content { path, what: "certificate" })?;
        Ok(STANDARD.encode(text))
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: nuee\nclusters:\n- name: nuee\n  cluster:\n{ca_line}{server_line}\
         contexts:\n- name: nuee\n  context:\n    cluster: nuee\n    user: admin\nusers:\n- name: admin\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        encoded("admin.crt")?,
        encoded("admin.key")?,
    );
    write_private(&options.kubeconfig, text.as_bytes())
}
