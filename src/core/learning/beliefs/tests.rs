use super::*;
use crate::fleet::ModelId;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SD: f64 = 0.15;

fn lesson(model: usize, prototype: usize, score: f64) -> QualityLesson {
    QualityLesson { model: ModelId::new(model), prototype: Some(prototype), score, quality: 0.6, quality_sd: SD }
}

fn taught(lessons: impl IntoIterator<Item = QualityLesson>) -> Offsets {
    let mut beliefs = Beliefs::default();
    lessons.into_iter().for_each(|l| beliefs.learn(&l));
    beliefs.offsets()
}

#[test]
fn nothing_learnt_changes_nothing() {
    assert_eq!(Offsets::default().revised(ModelId::new(0), Some(1), 0.6, SD), (0.6, SD));
    let offsets = taught([lesson(2, 1, 0.0)]);
    assert_eq!(offsets.revised(ModelId::new(1), Some(1), 0.6, SD), (0.6, SD), "another model");
    assert_eq!(offsets.revised(ModelId::new(9), Some(1), 0.6, SD), (0.6, SD), "a model without a row");
}

/// The closed form against the posterior of the joint normal, by elimination of the equations of both offsets.
#[test]
fn the_posterior_is_that_of_the_hierarchical_normal() {
    let counts = [(0, 7, -0.4), (1, 3, 0.2), (2, 20, 0.1)];
    let lessons = counts.iter().flat_map(|(kind, n, r)| (0..*n).map(move |_| lesson(0, *kind, 0.6 + r)));
    let offsets = taught(lessons);
    // Unknowns: a, b0, b1, b2. Precision matrix and right side of the joint posterior; hardly anything is forgotten yet.
    let (s, o) = (SHARED * SD * SD, (1.0 - SHARED) * SD * SD);
    let mut matrix = [[0.0; 5]; 4];
    matrix[0][0] = 1.0 / s;
    for (kind, n, r) in counts {
        let (n, at) = (f64::from(n) / NOISE, kind + 1);
        matrix[0][0] += n;
        matrix[at][at] = 1.0 / o + n;
        matrix[0][at] = n;
        matrix[at][0] = n;
        matrix[0][4] += n * r;
        matrix[at][4] = n * r;
    }
    for pivot in 0..4 {
        let row = matrix[pivot].map(|v| v / matrix[pivot][pivot]);
        matrix[pivot] = row;
        for other in (0..4).filter(|other| *other != pivot) {
            let factor = matrix[other][pivot];
            (0..5).for_each(|column| matrix[other][column] -= factor * row[column]);
        }
    }
    for kind in 0..3 {
        let expected = matrix[0][4] + matrix[kind + 1][4];
        let (quality, _) = offsets.revised(ModelId::new(0), Some(kind), 0.6, SD);
        assert!((quality - 0.6 - expected).abs() < 2e-3, "kind {kind}: {} instead of {expected}", quality - 0.6);
    }
    let (elsewhere, _) = offsets.revised(ModelId::new(0), Some(9), 0.6, SD);
    assert!((elsewhere - 0.6 - matrix[0][4]).abs() < 2e-3, "a kind without scores: {elsewhere}");
}

#[test]
fn scores_of_one_kind_move_that_kind_most() {
    let offsets = taught((0..60).map(|_| lesson(0, 3, 0.0)));
    let quality = |prototype| offsets.revised(ModelId::new(0), prototype, 0.6, SD).0;
    assert!(quality(Some(3)) < 0.15, "{}", quality(Some(3)));
    assert!(quality(Some(4)) > 0.4 && quality(None) > 0.4, "{} {}", quality(Some(4)), quality(None));
    // Good scores elsewhere acquit the model: it is that kind alone.
    let acquitted = taught((0..60).flat_map(|i| [lesson(0, 3, 0.0), lesson(0, 4 + i % 3, 0.6)]));
    let others = acquitted.revised(ModelId::new(0), Some(4), 0.6, SD).0;
    assert!(others > 0.55 && others > quality(Some(4)) + 0.05, "{others} instead of {}", quality(Some(4)));
    assert!(acquitted.revised(ModelId::new(0), Some(3), 0.6, SD).0 < 0.2);
}

#[test]
fn evidence_makes_surer_and_never_less_sure() {
    let mut beliefs = Beliefs::default();
    let mut before = SD;
    for i in 0..400 {
        beliefs.learn(&lesson(0, 1, f64::from(i % 2)));
        let (_, sd) = beliefs.offsets().revised(ModelId::new(0), Some(1), 0.6, SD);
        assert!(sd <= before + 1e-12, "after {i}: {sd} from {before}");
        before = sd;
    }
    assert!(before < SD / 3.0, "{before}");
    let (_, elsewhere) = beliefs.offsets().revised(ModelId::new(0), Some(2), 0.6, SD);
    assert!(elsewhere < SD && elsewhere > before, "a little, where only the model is known: {elsewhere}");
}

#[test]
fn beliefs_follow_drift() {
    let mut beliefs = Beliefs::default();
    (0..3_000).for_each(|_| beliefs.learn(&lesson(0, 1, 1.0)));
    let (good, sure) = beliefs.offsets().revised(ModelId::new(0), Some(1), 0.6, SD);
    (0..1_500).for_each(|_| beliefs.learn(&lesson(0, 1, 0.2)));
    let (bad, _) = beliefs.offsets().revised(ModelId::new(0), Some(1), 0.6, SD);
    assert!(good > 0.95 && bad < 0.3, "{good} {bad}");
    assert!(sure > 0.01, "certainty has an end, because old scores are forgotten: {sure}");
}

/// Whatever is scored, in whatever order, quality stays a quality and the deviation never grows.
#[test]
fn offsets_are_bounded() {
    let values = [0.0, 1.0, 0.5, -7.0, 1e300, f64::NAN, f64::INFINITY];
    let mut seed = 5u64;
    let mut pick = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let mut beliefs = Beliefs::default();
    for _ in 0..2_000 {
        beliefs.learn(&QualityLesson {
            model: ModelId::new([0, 1, 2, 70_000][pick(4)]),
            prototype: [None, Some(0), Some(255), Some(65_535), Some(usize::MAX)][pick(5)],
            score: values[pick(values.len())],
            quality: values[pick(values.len())],
            quality_sd: values[pick(values.len())],
        });
    }
    let offsets = beliefs.offsets();
    for model in [0, 1, 2, 70_000] {
        for prototype in [None, Some(0), Some(255), Some(65_535)] {
            for (quality, sd) in [(0.0, 0.0), (1.0, 0.5), (0.6, SD), (0.6, 1e-9)] {
                let (revised, left) = offsets.revised(ModelId::new(model), prototype, quality, sd);
                assert!((0.0..=1.0).contains(&revised) && (0.0..=sd).contains(&left), "{revised} {left}");
            }
        }
    }
    assert!(beliefs.own().iter().all(|(_, tally)| Beliefs::sound(*tally).is_some()));
}
