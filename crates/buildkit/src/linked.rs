//! Results that a client gives to other builds (`contexts = { base = "target:base" }` of `docker buildx bake`). BuildKit names a
//! result by the graph that makes it. Ours is of one node, which names the image; clients pass it on as it is.

use image::Digest;
use prost::Message;
use tonic::{Code, Status};

use crate::wire::ops::{Definition, Input, NodeMetadata, Op, SourceOp};

/// Begins the identifier of the node that stands for an image of the store.
const SCHEME: &str = "nuee-image://";

/// The graph that stands for an image.
pub fn definition(image: &Digest) -> Definition {
    let source = SourceOp { identifier: format!("{SCHEME}{image}"), ..SourceOp::default() };
    let node = Op { inputs: Vec::new(), source: Some(source) }.encode_to_vec();
    let input = Input { digest: Digest::of(&node).to_string(), index: 0 };
    // The last node has no kind: it says which node is the result.
    let end = Op { inputs: vec![input], source: None }.encode_to_vec();
    // Clients refuse a graph that says nothing of its nodes.
    let metadata = [&node, &end].map(|node| (Digest::of(node).to_string(), NodeMetadata {}));
    Definition { def: vec![node, end], metadata: metadata.into() }
}

/// The image that a graph of ours stands for.
///
/// Errors: `Unimplemented` for every other graph.
pub fn image(definition: &Definition) -> Result<Digest, Status> {
    let other = || Status::new(Code::Unimplemented, "graphs of BuildKit's low-level language are not evaluated");
    let [node, end] = definition.def.as_slice() else { return Err(other()) };
    let end = Op::decode(end.as_slice()).map_err(|_| other())?;
    let points_there = matches!(end.inputs.as_slice(), [input] if input.digest == Digest::of(node).to_string());
    let source = Op::decode(node.as_slice()).map_err(|_| other())?.source.filter(|_| points_there).ok_or_else(other)?;
    let digest = source.identifier.strip_prefix(SCHEME).ok_or_else(other)?;
    digest.parse().map_err(|_| other())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_graphs_of_ours_are_taken_back() {
        let digest = Digest::of(b"x");
        let ours = definition(&digest);
        assert_eq!(image(&ours).unwrap(), digest);
        let mut swapped = ours.clone();
        swapped.def.reverse();
        let foreign = SourceOp { identifier: "docker-image://alpine".to_owned(), ..SourceOp::default() };
        let node = Op { inputs: Vec::new(), source: Some(foreign) }.encode_to_vec();
        let replaced = Definition { def: vec![node, ours.def[1].clone()], ..Definition::default() };
        let senseless = Definition { def: vec![vec![255], vec![255]], ..Definition::default() };
        for graph in [Definition::default(), swapped, replaced, senseless] {
            assert_eq!(image(&graph).unwrap_err().code(), Code::Unimplemented);
        }
    }
}
