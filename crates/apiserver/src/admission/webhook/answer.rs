//! The answer: what a webhook said, and what is wrong with how it said it.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::Value;

use crate::status::{Reason, Status};

/// Most warnings of one answer that reach the client.
const MAX_WARNINGS: usize = 20;
/// Most annotations of one answer.
const MAX_ANNOTATIONS: usize = 20;

/// A webhook's answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    allowed: bool,
    result: Value,
    /// A JSON patch, when there is one.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Answer {
    /// Reads an `AdmissionReview`. Errors: text for people.
    pub(super) fn read(text: &[u8], uid: &str, version: &str) -> Result<Answer, String> {
        let invalid = |detail: String| format!("received invalid webhook response: {detail}");
        let (review, _) =
            crate::json::decode(text).map_err(|problem| format!("failed to call webhook: {}", problem.message))?;
        let (found_version, found_kind) =
            (crate::json::text(&review, "/apiVersion"), crate::json::text(&review, "/kind"));
        if found_version != version || found_kind != "AdmissionReview" {
            return Err(invalid(format!(
                "expected webhook response of {version}, Kind=AdmissionReview, got {found_version}, Kind={found_kind}"
            )));
        }
        let Some(response) = review.get("response").filter(|response| response.is_object()) else {
            return Err("webhook response was absent".to_owned());
        };
        let found = crate::json::text(response, "/uid");
        let is_old = version.ends_with("v1beta1");
        if found != uid && !is_old {
            return Err(invalid(format!("expected response.uid={uid:?}, got {found:?}")));
        }
        let kind = crate::json::text(response, "/patchType");
        let patch = match crate::json::text(response, "/patch") {
            "" if !kind.is_empty() => {
                return Err(invalid("webhook returned response.patchType but not response.patch".into()));
            }
            "" => None,
            _ if kind.is_empty() && !is_old => {
                return Err(invalid("webhook returned response.patch but not response.patchType".into()));
            }
            _ if !matches!(kind, "" | "JSONPatch") => {
                return Err(invalid(format!("invalid response.patchType {kind:?}")));
            }
            text => Some(decode_patch(text).map_err(invalid)?),
        };
        let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
        Ok(Answer {
            allowed: response["allowed"] == true,
            result: response["status"].clone(),
            patch,
            warnings: crate::json::strings(response, "/warnings").into_iter().take(MAX_WARNINGS).collect(),
            annotations: annotations
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .take(MAX_ANNOTATIONS)
                .collect(),
        })
    }

    /// The refusal, when it is one: with the webhook's own code and reason, but never a success.
    pub(super) fn denial(&self, webhook: &str) -> Result<(), Status> {
        if self.allowed {
            return Ok(());
        }
        let (message, reason) =
            (crate::json::text(&self.result, "/message"), crate::json::text(&self.result, "/reason"));
        let denied = format!("admission webhook {webhook:?} denied the request");
        let text = match (message, reason) {
            ("", "") => format!("{denied} without explanation"),
            ("", reason) => format!("{denied}: {reason}"),
            (message, _) => format!("{denied}: {message}"),
        };
        let code = self.result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
        let code = if (400..600).contains(&code) { code } else { 400 };
        let reason: Reason = serde_json::from_value(self.result["reason"].clone()).unwrap_or_default();
        let mut status = Status::new(code, reason, text);
        if let Ok(details) = serde_json::from_value(self.result["details"].clone()) {
            status.details = details;
        }
        Err(status)
    }
}

fn decode_patch(text: &str) -> Result<Value, String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| "response.patch is not base64")?;
    let (patch, _) = crate::json::decode(&bytes).map_err(|problem| format!("response.patch: {}", problem.message))?;
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(response: Value) -> Result<Result<(), Status>, String> {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        Answer::read(review.to_string().as_bytes(), "u", "admission.k8s.io/v1").map(|answer| answer.denial("w.x.y"))
    }

    #[test]
    fn refusals_carry_the_webhooks_words_and_never_a_success() {
        let status = check(json!({"uid": "u", "allowed": false})).unwrap().unwrap_err();
        assert_eq!(
            (status.code, status.message.as_str()),
            (400, "admission webhook \"w.x.y\" denied the request without explanation")
        );
        let told =
            json!({"uid": "u", "allowed": false, "status": {"code": 403, "message": "no", "reason": "Forbidden"}});
        let status = check(told).unwrap().unwrap_err();
        assert_eq!((status.code, status.reason), (403, Reason::Forbidden));
        assert_eq!(status.message, "admission webhook \"w.x.y\" denied the request: no");
        let sly = json!({"uid": "u", "allowed": false, "status": {"code": 200, "message": "fine"}});
        assert_eq!(check(sly).unwrap().unwrap_err().code, 400);
        assert!(check(json!({"uid": "u", "allowed": true})).unwrap().is_ok());
    }

    #[test]
    fn answers_to_another_question_do_not_count() {
        assert!(check(json!({"uid": "other", "allowed": true})).unwrap_err().contains("expected response.uid=\"u\""));
        assert!(check(json!({"uid": "u", "allowed": true, "patch": "W10="})).unwrap_err().contains("patchType"));
        assert!(check(json!({"uid": "u", "allowed": true, "patch": "!", "patchType": "JSONPatch"})).is_err());
        assert!(check(Value::Null).is_err());
        let wrong = Answer::read(b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\"}", "u", "admission.k8s.io/v1").unwrap_err();
        assert!(wrong.contains("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview"), "{wrong}");
    }
}
