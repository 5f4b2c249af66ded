//! One optimisation: relieve overloaded hosts, then empty under-used ones.

use super::packer::Packer;
use super::select::Selection;
use crate::run::Move;

/// What to move, in order.
pub fn optimise(packer: &mut Packer<'_, '_>, selection: &mut Selection) -> Vec<Move> {
    let overloaded: Vec<usize> = (0..packer.hosts.len()).filter(|host| packer.is_overloaded(*host)).collect();
    let mut moves = relieve(packer, selection, &overloaded);
    moves.extend(empty(packer, &overloaded));
    moves
}

fn relieve(packer: &mut Packer<'_, '_>, selection: &mut Selection, overloaded: &[usize]) -> Vec<Move> {
    let mut leaving = Vec::new();
    for &host in overloaded {
        packer.closed[host] = true;
        while let Some(vm) = selection.choose(packer, host) {
            leaving.push(vm);
            packer.remove(host, vm);
            if !packer.is_overloaded(host) {
                break;
            }
        }
    }
    place_all(packer, leaving).into_iter().filter_map(Result::ok).collect()
}

/// Places them, most demand first; an error says who found no place.
fn place_all(packer: &mut Packer<'_, '_>, mut vms: Vec<u32>) -> Vec<Result<Move, u32>> {
    let demand = |vm: u32| packer.world.vms[vm as usize].demand;
    vms.sort_by(|one, other| demand(*other).total_cmp(&demand(*one)));
    vms.into_iter().map(|vm| packer.place(vm).map(|to| Move { vm, to }).ok_or(vm)).collect()
}

fn empty(packer: &mut Packer<'_, '_>, overloaded: &[usize]) -> Vec<Move> {
    let count = packer.hosts.len();
    // Hosts that are not to be emptied: overloaded, off, tried, or just filled.
    let mut done: Vec<bool> = (0..count).map(|host| packer.world.load(host) == 0.0).collect();
    (0..count).filter(|host| done[*host]).for_each(|host| packer.closed[host] = true);
    overloaded.iter().for_each(|host| done[*host] = true);
    let mut moves = Vec::new();
    while let Some(host) = least_used(packer, &done) {
        done[host] = true;
        packer.closed[host] = true;
        let placed = place_whole(packer, host);
        placed.iter().for_each(|wanted| done[wanted.to as usize] = true);
        moves.extend(placed);
    }
    moves
}

fn least_used(packer: &Packer<'_, '_>, done: &[bool]) -> Option<usize> {
    let mut least = (1.0, None);
    for host in (0..done.len()).filter(|host| !done[*host]) {
        let load = packer.world.load(host);
        if load > 0.0 && load < least.0 {
            least = (load, Some(host));
        }
    }
    least.1
}

/// Finds places for all machines of a host, or for none.
fn place_whole(packer: &mut Packer<'_, '_>, host: usize) -> Vec<Move> {
    let mut vms = packer.hosts[host].vms.clone();
    let demand = |vm: u32| packer.world.vms[vm as usize].demand;
    vms.sort_by(|one, other| demand(*other).total_cmp(&demand(*one)));
    let mut moves = Vec::with_capacity(vms.len());
    for vm in vms {
        if let Some(to) = packer.place(vm) {
            moves.push(Move { vm, to });
        } else {
            moves.iter().for_each(|undone: &Move| packer.remove(undone.to as usize, undone.vm));
            return Vec::new();
        }
    }
    moves
}
