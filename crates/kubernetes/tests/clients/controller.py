"""A controller in another language: defines a kind, watches it, and keeps a ConfigMap for each of its objects.

Uses the official Python client and nothing else. Arguments: the kubeconfig. Prints one line for each thing that it
saw happen; the test reads them.
"""

import sys
import threading

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

GROUP, VERSION, PLURAL, NAMESPACE = "example.com", "v1", "gardens", "default"

DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{PLURAL}.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": PLURAL, "singular": "garden", "kind": "Garden"},
        "versions": [{
            "name": VERSION,
            "served": True,
            "storage": True,
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": {
                        "type": "object",
                        "required": ["plants"],
                        "properties": {"plants": {"type": "array", "items": {"type": "string"}, "maxItems": 10}},
                        "x-kubernetes-validations": [
                            {"rule": "self.plants.all(p, p != 'weed')", "message": "no weeds"}],
                    },
                    "status": {"type": "object", "properties": {"planted": {"type": "integer"}}},
                },
            }},
        }],
    },
}


def define():
    api = client.ApiextensionsV1Api()
    api.create_custom_resource_definition(DEFINITION)
    for event in watch.Watch().stream(api.list_custom_resource_definition,
                                      field_selector=f"metadata.name={PLURAL}.{GROUP}", timeout_seconds=30):
        conditions = event["object"].status.conditions or []
        if any(one.type == "Established" and one.status == "True" for one in conditions):
            print("established", flush=True)
            return
    raise SystemExit("the definition was never established")


def reconcile(garden):
    name = garden["metadata"]["name"]
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"garden-{name}", "ownerReferences": [{
            "apiVersion": f"{GROUP}/{VERSION}", "kind": "Garden", "name": name,
            "uid": garden["metadata"]["uid"], "controller": True}]},
        "data": {"plants": ",".join(garden["spec"]["plants"])},
    }
    client.CoreV1Api().patch_namespaced_config_map(
        f"garden-{name}", NAMESPACE, body, field_manager="gardener", force=True,
        _content_type="application/apply-patch+yaml")
    client.CustomObjectsApi().patch_namespaced_custom_object_status(
        GROUP, VERSION, NAMESPACE, PLURAL, name, {"status": {"planted": len(garden["spec"]["plants"])}})


def control(stop):
    api, watcher = client.CustomObjectsApi(), watch.Watch()
    while not stop.is_set():
        for event in watcher.stream(api.list_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL,
                                    timeout_seconds=5):
            if event["type"] in ("ADDED", "MODIFIED"):
                reconcile(event["object"])
            if stop.is_set():
                watcher.stop()


def eventually(what, check):
    for _ in range(600):
        try:
            if check():
                print(what, flush=True)
                return
        except ApiException as problem:
            if problem.status != 404:
                raise
        threading.Event().wait(0.05)
    raise SystemExit(f"never: {what}")


def main():
    config.load_kube_config(sys.argv[1])
    define()
    stop = threading.Event()
    controller = threading.Thread(target=control, args=(stop,), daemon=True)
    controller.start()
    api, core = client.CustomObjectsApi(), client.CoreV1Api()

    def garden(plants):
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Garden", "metadata": {"name": "mine"},
                "spec": {"plants": plants}}

    try:
        api.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, garden(["weed"]))
    except ApiException as problem:
        print(problem.status, "no weeds" in problem.body, flush=True)
    api.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, garden(["rose"]))
    eventually("planted one", lambda: core.read_namespaced_config_map("garden-mine", NAMESPACE).data == {"plants": "rose"})
    api.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, "mine", {"spec": {"plants": ["rose", "fern"]}})
    eventually("planted two", lambda: core.read_namespaced_config_map("garden-mine", NAMESPACE).data == {"plants": "rose,fern"})
    eventually("told so", lambda: api.get_namespaced_custom_object_status(
        GROUP, VERSION, NAMESPACE, PLURAL, "mine").get("status", {}).get("planted") == 2)
    # Typed objects of the client, a list in pages, and an error that it understands.
    for number in range(5):
        core.create_namespaced_secret(NAMESPACE, client.V1Secret(
            metadata=client.V1ObjectMeta(name=f"s{number}", labels={"many": "yes"}), string_data={"k": "v"}))
    page = core.list_namespaced_secret(NAMESPACE, label_selector="many=yes", limit=2)
    names = [one.metadata.name for one in page.items]
    while page.metadata._continue:
        page = core.list_namespaced_secret(NAMESPACE, label_selector="many=yes", limit=2, _continue=page.metadata._continue)
        names += [one.metadata.name for one in page.items]
    print("pages", names == [f"s{number}" for number in range(5)], flush=True)
    print("version", client.VersionApi().get_code().git_version.startswith("v1."), flush=True)
    stop.set()
    controller.join(30)
    client.ApiextensionsV1Api().delete_custom_resource_definition(f"{PLURAL}.{GROUP}")
    print("done", flush=True)


main()
