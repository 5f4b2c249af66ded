//! The cluster's own certificates: a CA, the server's certificate with every local address, the administrator's client
//! certificate in a kubeconfig, and the key that signs service account tokens. Made on the first start, kept afterwards,
//! renewed when near their end. All private files are 0600 and written atomically.

mod files;
mod kubeconfig;
mod local;
pub mod machine;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use files::write_private;

/// Life of the CA.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of every other certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate is made anew when less than this remains of it.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates are valid from this long ago, for clocks that go slow.
const BACKDATE: Duration = Duration::from_secs(300);
/// Subject of the administrator.
const ADMIN_NAME: &str = "admin";
/// Names by which every cluster's API server is known inside.
const FIXED_NAMES: &[&str] = &[
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// What went wrong with the certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
    },
    /// A certificate or key cannot be made.
    #[error("cannot make {what}")]
    Generate {
        /// What should be made.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// rustls does not take the certificates.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The verifier of client certificates cannot be made.
    #[error("cannot set up the verification of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Options of [`Pki::open`].
#[derive(Clone, Debug)]
pub struct PkiOptions {
    /// Directory of the certificates.
    pub dir: PathBuf,
    /// File of the administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// URL of the server in the kubeconfig, e.g. `https://127.0.0.1:6443`.
    pub server: String,
    /// Further names and addresses of the server, beside all local ones.
    pub names: Vec<String>,
    /// The clock.
    pub now: fn() -> Timestamp,
}

/// The certificates of one cluster.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
    now: fn() -> Timestamp,
    /// PKCS#8 (DER) of the P-256 key that signs service account tokens; for `apiserver::Options::token_key`.
    pub token_key: Vec<u8>,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
}

impl Pki {
    /// Loads what is there and makes what is missing, near its end, or no longer right (new local addresses).
    ///
    /// Errors: a file cannot be read or written, or holds something else. Nothing is ever overwritten because it is
    /// unreadable: a damaged CA is for a person to decide on.
    pub fn open(options: &PkiOptions) -> Result<Pki, Error> {
        files::private_directory(&options.dir)?;
        let pki = Pki { dir: options.dir.clone(), now: options.now, token_key: Vec::new(), ca_pem: String::new() };
        let ca_pem = pki.ensure_ca()?;
        let token_key = pki.ensure_key("service-account.key")?.serialize_der();
        let pki = Pki { ca_pem, token_key, ..pki };
        pki.ensure_server(&options.names)?;
        let renewed = pki.ensure_admin()?;
        kubeconfig::ensure(&pki, options, renewed)?;
        Ok(pki)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn ensure_key(&self, name: &str) -> Result<KeyPair, Error> {
        let path = self.path(name);
        if let Some(pem) = files::read(&path)? {
            return KeyPair::from_pem(&pem).map_err(|_| Error::Content { path, what: "private key" });
        }
        let key = KeyPair::generate().map_err(|source| Error::Generate { what: "a private key", source })?;
        write_private(&path, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    fn ensure_ca(&self) -> Result<String, Error> {
        let path = self.path("ca.crt");
        let key = self.ensure_key("ca.key")?;
        if let Some(pem) = files::read(&path)?
            && self.facts(&path, &pem)?.remaining > RENEW_BEFORE
        {
            return Ok(pem);
        }
        // A renewed CA keeps its key and name, so certificates signed by the old one stay valid.
        let mut params = self.params("nuee-ca", None, CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).map_err(|source| Error::Generate { what: "the CA", source })?.pem();
        write_private(&path, pem.as_bytes())?;
        Ok(pem)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        let key = self.ensure_key("ca.key")?;
        Issuer::from_ca_cert_pem(&self.ca_pem, key)
            .map_err(|_| Error::Content { path: self.path("ca.crt"), what: "CA certificate" })
    }

    fn params(&self, name: &str, group: Option<&str>, life: Duration) -> Result<CertificateParams, Error> {
        let mut params =
            CertificateParams::new(Vec::new()).map_err(|source| Error::Generate { what: "a certificate", source })?;
        params.distinguished_name.remove(DnType::CommonName);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        let now = Duration::from_secs(u64::try_from((self.now)().as_second()).unwrap_or_default());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(BACKDATE);
        params.not_after = epoch + (now + life);
        Ok(params)
    }

    fn ensure_server(&self, names: &[String]) -> Result<(), Error> {
        let (path, key) = (self.path("server.crt"), self.ensure_key("server.key")?);
        let mut wanted: Vec<String> = FIXED_NAMES.iter().map(|name| (*name).to_owned()).collect();
        wanted.extend(local::names());
        wanted.extend(names.iter().filter(|name| !name.is_empty()).cloned());
        wanted.sort();
        wanted.dedup();
        if let Some(pem) = files::read(&path)? {
            let facts = self.facts(&path, &pem)?;
            if facts.remaining > RENEW_BEFORE && wanted.iter().all(|name| facts.names.contains(name)) {
                return Ok(());
            }
        }
        let mut params = self.params("nuee", None, LEAF_LIFE)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in &wanted {
            let san = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => match name.as_str().try_into() {
                    Ok(name) => SanType::DnsName(name),
                    Err(_) => continue,
                },
            };
            params.subject_alt_names.push(san);
        }
        let certificate = params
            .signed_by(&key, &self.issuer()?)
            .map_err(|source| Error::Generate { what: "the server certificate", source })?;
        write_private(&path, certificate.pem().as_bytes())
    }

    /// Whether the certificate was made anew.
    fn ensure_admin(&self) -> Result<bool, Error> {
        let (path, key) = (self.path("admin.crt"), self.ensure_key("admin.key")?);
        if let Some(pem) = files::read(&path)?
            && self.facts(&path, &pem)?.remaining > RENEW_BEFORE
        {
            return Ok(false);
        }
        let pem = self.sign_client(ADMIN_NAME, Some(api::names::ADMIN_GROUP), LEAF_LIFE, &key)?;
        write_private(&path, pem.as_bytes())?;
        Ok(true)
    }

    fn sign_client(&self, name: &str, group: Option<&str>, life: Duration, key: &KeyPair) -> Result<String, Error> {
        let mut params = self.params(name, group, life)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(key, &self.issuer()?)
            .map_err(|source| Error::Generate { what: "a client certificate", source })?;
        Ok(certificate.pem())
    }

    /// Signs a new client certificate for a user in at most one group (rcgen writes no attribute twice): (certificate,
    /// private key), both PEM. Nothing is kept.
    pub fn client_certificate(
        &self,
        name: &str,
        group: Option<&str>,
        life: Duration,
    ) -> Result<(String, String), Error> {
        let key = KeyPair::generate().map_err(|source| Error::Generate { what: "a private key", source })?;
        Ok((self.sign_client(name, group, life, &key)?, key.serialize_pem()))
    }

    fn facts(&self, path: &Path, pem: &str) -> Result<Facts, Error> {
        let wrong = || Error::Content { path: path.to_owned(), what: "certificate" };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| wrong())?;
        let seconds = certificate.validity().not_after.timestamp() - (self.now)().as_second();
        let sans = certificate.subject_alternative_name().ok().flatten();
        let names = sans.map(|sans| sans.value.general_names.iter().filter_map(san_text).collect()).unwrap_or_default();
        Ok(Facts { remaining: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()), names })
    }

    /// TLS for [`crate::serve`]: HTTP/2 and HTTP/1.1, client certificates of our CA optional.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let (path, key_path) = (self.path("server.crt"), self.path("server.key"));
        let read = |path: &Path, what: &'static str| {
            files::read(path)?.ok_or_else(|| Error::Content { path: path.to_owned(), what })
        };
        let certificate = CertificateDer::from_pem_slice(read(&path, "certificate")?.as_bytes())
            .map_err(|_| Error::Content { path, what: "certificate" })?;
        let key = PrivateKeyDer::from_pem_slice(read(&key_path, "private key")?.as_bytes())
            .map_err(|_| Error::Content { path: key_path, what: "private key" })?;
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|_| Error::Content { path: self.path("ca.crt"), what: "certificate" })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone())?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            // A machine that joins knows the authority by its fingerprint alone, so the chain goes up to it.
            .with_single_cert(vec![certificate, ca], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

struct Facts {
    remaining: Duration,
    names: Vec<String>,
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(IpAddr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;
