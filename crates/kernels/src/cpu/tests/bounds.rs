//! Sizes whose products wrap around are rejected before any memory is accessed.

use crate::cpu::cross_entropy::{self, RowLosses, Task};
use crate::cpu::matmul::{MatMut, MatRef};
use crate::cpu::rotary::{Direction, Tables, rotate};
use crate::cpu::view::{SharedView, SharedViewMut, Strides, View, ViewMut};

/// Two of them wrap around to zero.
const HALF: usize = 1 << (usize::BITS - 1);

const WRAPPING: Strides = Strides {
    batch: HALF,
    seq: 2,
    head: 2,
};

#[test]
#[should_panic(expected = "the view exceeds its data")]
fn wrapping_strides_of_a_view_panic() {
    let view = View {
        data: &[0.0; 2],
        strides: WRAPPING,
    };
    SharedView::new(view, [3, 1, 1, 2]);
}

#[test]
#[should_panic(expected = "the view exceeds its data")]
fn wrapping_strides_of_a_writable_view_panic() {
    let view = ViewMut {
        data: &mut [0.0; 2],
        strides: WRAPPING,
    };
    SharedViewMut::new(view, [3, 1, 1, 2]);
}

#[test]
#[should_panic(expected = "the view exceeds its data")]
fn wrapping_sizes_of_a_view_panic() {
    let view = View {
        data: &[],
        strides: Strides::token_first(2, 1, 1),
    };
    SharedView::new(view, [HALF, 2, 1, 1]);
}

#[test]
#[should_panic(expected = "assertion")]
fn wrapping_number_of_logits_panics() {
    let task = Task {
        vocab: HALF,
        targets: &[0, 0],
        soft_cap: None,
    };
    let losses = RowLosses {
        loss: &mut [0.0; 2],
        lse: &mut [0.0; 2],
    };
    cross_entropy::forward(&task, &[], losses);
}

#[test]
#[should_panic(expected = "assertion")]
fn wrapping_size_of_rotated_heads_panics() {
    let tables = Tables {
        cos: &[1.0; 2],
        sin: &[0.0; 2],
    };
    rotate(Direction::Forward, tables, &[0], &mut [], [1, 1, HALF, 2]);
}

#[test]
#[should_panic(expected = "the tables must cover all positions")]
fn wrapping_position_panics() {
    let tables = Tables {
        cos: &[1.0; 2],
        sin: &[0.0; 2],
    };
    let x = &mut [1.0; 2];
    rotate(Direction::Forward, tables, &[usize::MAX], x, [1, 1, 1, 2]);
}

#[test]
#[should_panic(expected = "needs more than")]
fn wrapping_strides_of_a_matrix_panic() {
    MatRef::new(&[0.0; 2], 3, 1, HALF, 1);
}

#[test]
#[should_panic(expected = "needs more than")]
fn wrapping_strides_of_a_result_panic() {
    MatMut::new(&mut [0.0; 2], 3, 1, HALF);
}
