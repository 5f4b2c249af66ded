//! Floating addresses with real packets: in, out, between workloads, moved while flows run, given up, and taken again by the next
//! daemon.

use std::net::Ipv4Addr;

use network::{DEFAULT_NETWORK, SecurityGroup};

use crate::lab::{self, PATIENCE, ask, assert_unreachable, dial, serve_tcp, shell};

/// On the network of the machine's uplink.
const FLOATING: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 78);

#[test]
fn an_address_leads_in_and_is_shown_outside() {
    lab::run(|mut lab| async move {
        let (web, other) = (lab.workload("web", DEFAULT_NETWORK).await, lab.workload("other", DEFAULT_NETWORK).await);
        let apart = lab.network("apart", false).await;
        let stranger = lab.workload("stranger", &apart.id).await;
        for one in [&web, &other] {
            serve_tcp(Some(&one.namespace), 80, &one.owner);
        }
        serve_tcp(None, 80, "machine");
        serve_tcp(Some(&lab.world), 9000, "world");
        let world = lab.world.clone();
        let outside = Some(&*world);
        assert_unreachable(outside, FLOATING, 80);
        let sync = |target: Ipv4Addr| lab.fabric.sync_floating_addresses(vec![(FLOATING, target)]);
        assert!(sync(web.address).await.unwrap().is_empty());
        // In: from outside, the machine itself, a neighbour, another network, and the workload itself.
        assert_eq!(ask(outside, FLOATING, 80), format!("web {}", lab::WORLD));
        for from in [None, Some(&*other.namespace), Some(&*stranger.namespace), Some(&*web.namespace)] {
            assert!(ask(from, FLOATING, 80).starts_with("web "), "{from:?}");
        }
        // Out: the world sees it, and of others the machine's address as ever.
        assert_eq!(ask(Some(&web.namespace), lab::WORLD, 9000), format!("world {FLOATING}"));
        assert_eq!(ask(Some(&other.namespace), lab::WORLD, 9000), format!("world {}", lab::MACHINE));
        // It moves while a flow runs: the flow ends, new ones lead to the new place.
        let (mut stream, _) = dial(outside, FLOATING, 80, PATIENCE).unwrap();
        lab::assert_alive(&mut stream);
        sync(other.address).await.unwrap();
        assert_eq!(ask(outside, FLOATING, 80), format!("other {}", lab::WORLD));
        crate::security_groups::assert_cut(&mut stream);
        assert_eq!(ask(Some(&web.namespace), lab::WORLD, 9000), format!("world {}", lab::MACHINE));
        // Rules see who really speaks.
        let closed = SecurityGroup { id: "closed".into(), ingress: vec![], egress: vec![], members: vec![] };
        lab.fabric.sync_security_groups(vec![closed]).await.unwrap();
        lab.fabric.guard("other", vec!["closed".into()]).await.unwrap();
        assert_unreachable(outside, FLOATING, 80);
        lab.fabric.guard("other", Vec::new()).await.unwrap();
        // The next daemon finds it, and gives up what is not wanted any more.
        lab.restart().await;
        assert_eq!(ask(outside, FLOATING, 80), format!("other {}", lab::WORLD));
        lab.fabric.sync_floating_addresses(vec![(OTHER, web.address)]).await.unwrap();
        assert_unreachable(outside, FLOATING, 80);
        assert!(ask(outside, OTHER, 80).starts_with("web "));
        assert!(!shell("ip -4 addr").contains(&FLOATING.to_string()));
        lab.fabric.destroy_all().await.unwrap();
        assert!(!shell("ip -4 addr").contains(&OTHER.to_string()));
    });
}

#[test]
fn what_is_the_machines_own_is_not_given_away() {
    lab::run(|lab| async move {
        let web = lab.workload("web", DEFAULT_NETWORK).await;
        serve_tcp(None, 80, "machine");
        serve_tcp(Some(&web.namespace), 80, "web");
        let taken = [lab::MACHINE, web.gateway, Ipv4Addr::new(10, 88, 0, 99)];
        let wanted = taken.iter().map(|address| (*address, web.address)).chain([(FLOATING, web.address)]);
        let refused = lab.fabric.sync_floating_addresses(wanted.collect()).await.unwrap();
        assert_eq!(refused, taken);
        assert!(ask(Some(&lab.world), lab::MACHINE, 80).starts_with("machine "));
        assert!(ask(Some(&lab.world), FLOATING, 80).starts_with("web "));
    });
}
