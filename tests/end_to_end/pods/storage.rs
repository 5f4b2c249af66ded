//! Volumes, the environment, and bounds on local storage.

use anyhow::Result;

use super::{becomes, pod, ready, told, value};
use crate::with_images;

const SHOW: &str = "sleep 600";

#[test]
fn volumes_and_variables_show_what_they_stand_for() -> Result<()> {
    let nuee = with_images()?;
    let host = nuee.files().join("host");
    std::fs::create_dir_all(&host)?;
    std::fs::write(host.join("file"), "from the host\n")?;
    nuee.kubectl(&["create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=big"])?
        .success()?;
    nuee.kubectl(&["create", "secret", "generic", "keys", "--from-literal=pass=hush"])?.success()?;
    let host = host.display();
    let spec = format!(
        r#"  volumes:
  - {{name: empty, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}
  - {{name: directory, hostPath: {{path: {host}, type: Directory}}}}
  - {{name: made, hostPath: {{path: {host}/made, type: DirectoryOrCreate}}}}
  - {{name: file, hostPath: {{path: {host}/file, type: File}}}}
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: picked, configMap: {{name: settings, defaultMode: 0400, items: [{{key: color, path: deep/colour, mode: 0440}}]}}}}
  - {{name: keys, secret: {{secretName: keys, defaultMode: 0400}}}}
  - {{name: none, configMap: {{name: absent, optional: true}}}}
  - name: down
    downwardAPI:
      items:
      - {{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}
      - {{path: limit, resourceFieldRef: {{containerName: c, resource: limits.memory, divisor: 1Mi}}}}
  - name: all
    projected:
      sources:
      - {{configMap: {{name: settings, items: [{{key: size, path: size}}]}}}}
      - {{secret: {{name: keys}}}}
      - {{downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}
      - {{serviceAccountToken: {{path: token, audience: vault, expirationSeconds: 600}}}}"#
    );
    let more = r#"    resources: {limits: {memory: 64Mi, cpu: 1500m}}
    volumeMounts:
    - {name: empty, mountPath: /empty}
    - {name: memory, mountPath: /memory}
    - {name: directory, mountPath: /directory, readOnly: true}
    - {name: made, mountPath: /made}
    - {name: file, mountPath: /file}
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one/color, subPath: color}
    - {name: picked, mountPath: /picked}
    - {name: keys, mountPath: /keys}
    - {name: none, mountPath: /none}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: empty, mountPath: /sub, subPathExpr: $(NAME)}
    envFrom:
    - {configMapRef: {name: settings}, prefix: SET_}
    - {secretRef: {name: keys}}
    - {configMapRef: {name: absent, optional: true}}
    env:
    - {name: PLAIN, value: plain}
    - {name: EXPANDED, value: $(PLAIN)-$(SET_color)-$$(PLAIN)-$(NONE)}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASS, valueFrom: {secretKeyRef: {name: keys, key: pass}}}
    - {name: MAYBE, valueFrom: {secretKeyRef: {name: keys, key: none, optional: true}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}"#;
    let labelled = pod("show", SHOW, &spec, more).replace("{name: show}", "{name: show, labels: {tier: front}}");
    let broken =
        pod("broken", SHOW, "", "    env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: none}}}]");
    let unmounted = pod(
        "unmounted",
        SHOW,
        "  volumes: [{name: v, secret: {secretName: absent}}]",
        "    volumeMounts: [{name: v, mountPath: /v}]",
    );
    nuee.apply(&[labelled, broken, unmounted].concat())?.success()?;
    ready(&nuee, &["show"])?;
    let inside = |script: &str| -> Result<String> {
        Ok(nuee.kubectl(&["exec", "show", "--", "sh", "-c", script])?.success()?.stdout.trim().to_owned())
    };
    let address = value(&nuee, "pod/show", ".status.podIP")?;
    for (script, wanted) in [
        ("echo $PLAIN $EXPANDED", "plain plain-blue-$(PLAIN)-$(NONE)"),
        ("echo $SET_size $pass $COLOR $PASS [$MAYBE] $NAME $CPU", "big hush blue hush [] show 2"),
        ("echo $ADDRESS", address.as_str()),
        ("cat /file; touch /directory/x 2>&1 || true", "from the host\ntouch: /directory/x: Read-only file system"),
        ("touch /settings/x 2>&1 || true", "touch: /settings/x: Read-only file system"),
        ("cat /settings/color /one/color /picked/deep/colour", "blueblueblue"),
        ("stat -Lc %a /picked/deep/colour /keys/pass", "440\n400"),
        ("ls /none | wc -l", "0"),
        ("cat /down/labels; echo; cat /down/limit", "tier=\"front\"\n64"),
        ("cat /all/size /all/pass /all/name", "bighushshow"),
        ("cut -d. -f2 /all/token | tr _- /+ | base64 -d 2>/dev/null | grep -o vault", "vault"),
        ("dd if=/dev/zero of=/memory/x bs=2M count=1 2>&1 | grep -c 'No space left'", "1"),
        ("touch /sub/y; ls /empty", "show"),
    ] {
        assert_eq!(inside(script)?, wanted, "{script}");
    }
    // Content follows its object, all at once; a sub path stays as it was.
    nuee.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data":{"color":"green"}}"#])?.success()?;
    nuee.eventually("the volume shows the new content", || Ok(inside("cat /settings/color")? == "green"))?;
    assert_eq!(inside("cat /one/color")?, "blue");
    becomes(&nuee, "pod/broken", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")?;
    told(&nuee, "broken", "Failed", "couldn't find key none in ConfigMap default/settings")?;
    told(&nuee, "unmounted", "FailedMount", "MountVolume.SetUp failed for volume \"v\" : secret \"absent\" not found")?;
    // What was missing comes, and the pod goes on.
    nuee.kubectl(&["create", "secret", "generic", "absent"])?.success()?;
    ready(&nuee, &["unmounted"])?;
    nuee.finish()
}

#[test]
fn a_pod_that_fills_the_disk_is_evicted_and_its_neighbour_stays() -> Result<()> {
    let nuee = with_images()?;
    let fill = |place: &str| format!("dd if=/dev/zero of={place} bs=1M count=8; sleep 600");
    let volume = "  volumes: [{name: v, emptyDir: {sizeLimit: 4Mi}}]";
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let limit = "    resources: {limits: {ephemeral-storage: 4Mi}}";
    let manifest = [
        pod("volume", &fill("/v/x"), volume, mount),
        pod("layer", &fill("/x"), "", limit),
        // What a container says counts too.
        pod("log", "yes 0123456789012345678901234567890123456789 | head -c 8388608; sleep 600", "", limit),
        pod("neighbour", "sleep 600", volume, &format!("{mount}{limit}")),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    for name in ["volume", "layer", "log"] {
        becomes(&nuee, &format!("pod/{name}"), ".status.reason", "Evicted")?;
        assert_eq!(value(&nuee, &format!("pod/{name}"), ".status.phase")?, "Failed");
    }
    told(&nuee, "volume", "Evicted", "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\"")?;
    told(&nuee, "layer", "Evicted", "exceeds the total limit of containers")?;
    told(&nuee, "log", "Evicted", "exceeds the total limit of containers")?;
    assert_eq!(value(&nuee, "pod/neighbour", ".status.phase")?, "Running");
    nuee.finish()
}
