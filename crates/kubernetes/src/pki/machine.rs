//! Certificates of machines: what the authority signs for one, and how a machine shows it, both as a client of the API and as
//! the server that the API's machine calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, LEAF_LIFE, Pki, files, write_private};

/// Group of all machines. `Source:` Kubernetes, "Using Node Authorization".
const GROUP: &str = "system:nodes";
/// Prefix of their user names.
const USER_PREFIX: &str = "system:node:";
/// Domain in which every machine's certificate has a name, which nothing else has: so that neither another machine's address
/// nor the name of the API can be taken by one.
const DOMAIN: &str = "machines.nuee.internal";
/// Attribute for the uid. `Source:` Kubernetes, "X.509 client certificates".
const UID_ATTRIBUTE: [u64; 8] = [1, 3, 6, 1, 4, 1, 57683, 2];
/// A machine asks for a new certificate when less than this remains of it.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest name of a machine; the certificate's name of it must fit into 253 characters.
pub const NAME_CHARACTERS_MAX: usize = 200;

/// The name in the certificate of a machine.
#[must_use]
pub fn server_name(machine: &str) -> String {
    format!("{machine}.{DOMAIN}")
}

/// Fingerprint of an authority: SHA-256 of its public key, in hexadecimal, as `kubeadm join` has it after `sha256:`.
#[must_use]
pub fn fingerprint(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
    Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Pki {
    /// The fingerprint of the authority.
    ///
    /// `Errors:` its certificate cannot be read.
    pub fn fingerprint(&self) -> Result<String, Error> {
        let wrong = || Error::Content { path: self.path("ca.crt"), what: "certificate" };
        let der = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|_| wrong())?;
        fingerprint(&der).ok_or_else(wrong)
    }

    /// Signs a machine's request. Of the request only the key counts: what the certificate says is said here. It holds as long as
    /// the `Node` object with this uid does.
    ///
    /// `Errors:` the request is none.
    pub fn sign_machine(&self, request: &str, name: &str, uid: &str) -> Result<String, Error> {
        let failed = |source| Error::Generate { what: "a machine's certificate", source };
        let request = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
        let mut params = self.params(&format!("{USER_PREFIX}{name}"), Some(GROUP), LEAF_LIFE)?;
        let uid_attribute = DnType::CustomDnType(UID_ATTRIBUTE.to_vec());
        params.distinguished_name.push(uid_attribute, uid);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let san = server_name(name).as_str().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::DnsName(san)];
        Ok(params.signed_by(&request.public_key, &self.issuer()?).map_err(failed)?.pem())
    }
}

/// Fingerprint of the key in a request for a certificate: SHA-256 in hexadecimal; `None` when it is no request, or is not signed
/// with that key.
#[must_use]
pub fn request_fingerprint(request: &str) -> Option<String> {
    let request = CertificateSigningRequestParams::from_pem(request).ok()?;
    let key = rcgen::PublicKeyData::subject_public_key_info(&request.public_key);
    let digest = ring::digest::digest(&ring::digest::SHA256, &key);
    Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a machine's key, unless there is one, and a request for a certificate with it (PEM).
///
/// `Errors:` the directory cannot be written, or holds something else.
pub fn request(dir: &Path) -> Result<String, Error> {
    files::private_directory(dir)?;
    let path = dir.join(KEY);
    let failed = |source| Error::Generate { what: "a request for a certificate", source };
    let key = match files::read(&path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(|_| Error::Content { path, what: "private key" })?,
        None => {
            let key = KeyPair::generate().map_err(failed)?;
            write_private(&path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    let request = CertificateParams::new(Vec::new()).and_then(|params| params.serialize_request(&key));
    request.and_then(|request| request.pem()).map_err(failed)
}

/// Keeps what the authority answered; the certificate comes last, so that where it is, the rest is too.
///
/// `Errors:` the directory cannot be written.
pub fn keep(dir: &Path, authority: &str, certificate: &str) -> Result<(), Error> {
    write_private(&dir.join(AUTHORITY), authority.as_bytes())?;
    write_private(&dir.join(CERTIFICATE), certificate.as_bytes())
}

const AUTHORITY: &str = "ca.crt";
const KEY: &str = "machine.key";
const CERTIFICATE: &str = "machine.crt";

/// A certificate with its key, to be shown on either side of a connection, and exchanged while connections are made.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a machine has to show.
#[derive(Clone, Debug)]
pub struct Machine {
    dir: PathBuf,
    /// The authority's certificate, PEM.
    pub authority: String,
    shown: Arc<Shown>,
}

fn certified(certificate: &str, key: &str, dir: &Path) -> Result<CertifiedKey, Error> {
    let wrong = |name: &str, what| Error::Content { path: dir.join(name), what };
    let certificate =
        CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| wrong(CERTIFICATE, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| wrong(KEY, "private key"))?;
    Ok(CertifiedKey::from_der(vec![certificate], key, &rustls::crypto::ring::default_provider())?)
}

impl Machine {
    /// What lies in the directory; `None` when the machine has not joined anything.
    ///
    /// `Errors:` a file is there and holds something else.
    pub fn open(dir: &Path) -> Result<Option<Machine>, Error> {
        let read = |name: &str| files::read(&dir.join(name));
        let (Some(certificate), Some(key), Some(authority)) = (read(CERTIFICATE)?, read(KEY)?, read(AUTHORITY)?) else {
            return Ok(None);
        };
        let shown = Shown(ArcSwap::from_pointee(certified(&certificate, &key, dir)?));
        Ok(Some(Machine { dir: dir.to_owned(), authority, shown: Arc::new(shown) }))
    }

    /// A certificate that need not be kept, such as that of the API's own machine.
    ///
    /// `Errors:` it is none.
    pub fn of(authority: &str, certificate: &str, key: &str) -> Result<Machine, Error> {
        let dir = PathBuf::new();
        let shown = Shown(ArcSwap::from_pointee(certified(certificate, key, &dir)?));
        Ok(Machine { dir, authority: authority.to_owned(), shown: Arc::new(shown) })
    }

    /// Whether it is time for a new certificate at this instant (seconds since the Unix epoch).
    #[must_use]
    pub fn is_due(&self, now_seconds: i64) -> bool {
        let shown = self.shown.0.load();
        let end = shown.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
        let end = end.map(|(_, certificate)| certificate.validity().not_after.timestamp());
        let margin = i64::try_from(RENEW_BEFORE.as_secs()).unwrap_or(i64::MAX);
        end.is_none_or(|end| end.saturating_sub(now_seconds) < margin)
    }

    /// A request for the next certificate, with the same key (PEM).
    ///
    /// `Errors:` as [`request`].
    pub fn request(&self) -> Result<String, Error> {
        request(&self.dir)
    }

    /// Keeps and shows the next certificate.
    ///
    /// `Errors:` it is none, or cannot be kept.
    pub fn renew(&self, certificate: &str) -> Result<(), Error> {
        let path = self.dir.join(KEY);
        let key = files::read(&path)?.ok_or(Error::Content { path, what: "private key" })?;
        let next = certified(certificate, &key, &self.dir)?;
        keep(&self.dir, &self.authority, certificate)?;
        self.shown.0.store(Arc::new(next));
        Ok(())
    }

    fn roots(&self) -> Result<Arc<rustls::RootCertStore>, Error> {
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes())
            .map_err(|_| Error::Content { path: self.dir.join(AUTHORITY), what: "certificate" })?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority)?;
        Ok(Arc::new(roots))
    }

    /// TLS for connections that this machine makes, by HTTP/2 or by HTTP/1.1 alone.
    ///
    /// `Errors:` rustls does not take the certificates.
    pub fn client_config(&self, http2: bool) -> Result<Arc<rustls::ClientConfig>, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(self.shown.clone());
        config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        Ok(Arc::new(config))
    }

    /// TLS for connections to this machine: nobody without a certificate of our authority gets as far as a request.
    ///
    /// `Errors:` rustls does not take the certificates.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(self.roots()?, provider.clone()).build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::PkiOptions;

    #[test]
    fn a_machines_certificate_says_what_the_authority_wants_and_is_renewed_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let options = PkiOptions {
            dir: directory.path().join("pki"),
            kubeconfig: directory.path().join("kubeconfig"),
            server: "https://127.0.0.1:6443".into(),
            names: Vec::new(),
            now: jiff::Timestamp::now,
        };
        let pki = Pki::open(&options).unwrap();
        let dir = directory.path().join("machine");
        assert!(Machine::open(&dir).unwrap().is_none());
        let asked = request(&dir).unwrap();
        let certificate = pki.sign_machine(&asked, "n2", "uid-2").unwrap();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let user = crate::identity::certificate_user(&der).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:node:n2", "uid-2"));
        assert!(user.is_in("system:nodes") && !user.is_in("system:masters"));
        assert!(pki.sign_machine("no request", "n2", "uid-2").is_err());
        keep(&dir, &pki.ca_pem, &certificate).unwrap();
        let machine = Machine::open(&dir).unwrap().unwrap();
        let now = jiff::Timestamp::now().as_second();
        assert!(!machine.is_due(now));
        assert!(machine.is_due(now + 300 * 24 * 3600));
        let next = pki.sign_machine(&machine.request().unwrap(), "n2", "uid-2").unwrap();
        machine.renew(&next).unwrap();
        assert_ne!(next, certificate);
        assert!(machine.client_config(true).is_ok() && machine.server_config().is_ok());
    }
}
