//! Product, sum and threshold as one operation.
//!
//! tract's own product packs its row at every run, and every operation of a plan costs about a microsecond in Envoy's V8: more
//! than the arithmetic of these small layers.

use crate::plan::{BinaryOp, PlanDense, PlanNode, PlanOp};

/// The nodes and outputs with every product of a row and a constant matrix made [`PlanOp::Dense`], which also does the sum with a
/// row and the maximum with a constant row that follow it.
pub(crate) fn dense(mut nodes: Vec<PlanNode>, outputs: Vec<usize>) -> (Vec<PlanNode>, Vec<usize>) {
    for at in 0..nodes.len() {
        let Some(mut op) = product(&nodes, at) else { continue };
        let mut inputs = vec![nodes[at].inputs[0]];
        let mut last = at;
        if let Some((next, other)) = absorbed(&nodes, &outputs, last, &BinaryOp::Add)
            && size(&nodes[other]) == size(&nodes[at])
        {
            match nodes[other].op {
                PlanOp::Const(bias) => op.bias = Some(bias),
                _ => inputs.push(other),
            }
            last = next;
        }
        if let Some((next, floor)) = absorbed(&nodes, &outputs, last, &BinaryOp::Max)
            && size(&nodes[floor]) == size(&nodes[at])
            && let PlanOp::Const(floor) = nodes[floor].op
        {
            op.floor = Some(floor);
            last = next;
        }
        nodes[last].op = PlanOp::Dense(op);
        nodes[last].inputs = inputs;
    }
    swept(nodes, &outputs)
}

/// The product at a node, if its left side is a row and its right side a constant matrix.
fn product(nodes: &[PlanNode], at: usize) -> Option<PlanDense> {
    let node = &nodes[at];
    let (PlanOp::EinSum(axes), [row, matrix]) = (&node.op, node.inputs.as_slice()) else { return None };
    let (PlanOp::Const(weights), [rows, columns]) = (&nodes[*matrix].op, nodes[*matrix].shape.as_slice()) else {
        return None;
    };
    let fits = size(&nodes[*row]) == *rows && size(node) == *columns && is_row_product(axes);
    fits.then_some(PlanDense { weights: *weights, rows: *rows, bias: None, floor: None })
}

/// `k,kn->n` in any letters; the rows may have a first axis, of length 1.
fn is_row_product(axes: &str) -> bool {
    let Some((inputs, output)) = axes.split_once("->") else { return false };
    let Some((row, matrix)) = inputs.split_once(',') else { return false };
    let mut letters = matrix.chars();
    let (Some(k), Some(n), None) = (letters.next(), letters.next(), letters.next()) else { return false };
    k != n && row.ends_with(k) && output.ends_with(n) && !row.contains(n) && !output.contains(k)
}

/// Values of a node's output.
fn size(node: &PlanNode) -> usize {
    node.shape.iter().product()
}

/// The only node that reads this one, and its other operand, if it is this binary operation.
fn absorbed(nodes: &[PlanNode], outputs: &[usize], at: usize, op: &BinaryOp) -> Option<(usize, usize)> {
    let mut readers = nodes.iter().enumerate().filter(|(_, node)| node.inputs.contains(&at));
    let (reader, node) = readers.next()?;
    let is_that = matches!(&node.op, PlanOp::Binary(found) if found == op);
    if readers.next().is_some() || outputs.contains(&at) || !is_that {
        return None;
    }
    let other = node.inputs.iter().find(|input| **input != at)?;
    Some((reader, *other))
}

/// Without the nodes that no output needs.
fn swept(nodes: Vec<PlanNode>, outputs: &[usize]) -> (Vec<PlanNode>, Vec<usize>) {
    let mut needed: Vec<bool> = (0..nodes.len()).map(|at| outputs.contains(&at) || at == 0).collect();
    for at in (0..nodes.len()).rev() {
        if needed[at] {
            nodes[at].inputs.iter().for_each(|input| needed[*input] = true);
        }
    }
    let place: Vec<usize> = (0..nodes.len()).map(|at| needed[..at].iter().filter(|kept| **kept).count()).collect();
    let kept = nodes.into_iter().zip(&needed).filter(|(_, needed)| **needed).map(|(mut node, _)| {
        node.inputs.iter_mut().for_each(|input| *input = place[*input]);
        node
    });
    (kept.collect(), outputs.iter().map(|at| place[*at]).collect())
}
