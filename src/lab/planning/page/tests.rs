use super::super::planned::tests::sample;
use super::*;

#[test]
fn the_page_needs_nothing_else_and_shows_the_plan() {
    let parts = [Part { id: "check".to_owned(), title: "Checked".to_owned(), html: "<p>within 3 %</p>".to_owned() }];
    let html = html(&sample(), &parts);
    for words in [
        "2 models on 2 A100-80GB",
        "10 requests per second, mean_ttft_ms 500",
        "scores from 0.400 to 0.600",
        "equal-split",
        "No setup of isolated keeps the limits.",
        "GPU 1",
        "At 15 requests per second no routing of this setup keeps the limits",
        "<section id=\"check\"><h2>Checked</h2>\n<p>within 3 %</p></section>",
        "2 of 9 rows, drawn with seed 0",
    ] {
        assert!(html.contains(words), "{words}");
    }
    assert!(!html.contains("http://") && !html.contains("https://"), "nothing is fetched");
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert_eq!(html.matches("<figure").count(), 6);
}

#[test]
fn without_a_plan_the_page_says_so() {
    let none = Planned { plans: Vec::new(), by_rule: Vec::new(), at_demand: Vec::new(), ..sample() };
    let html = html(&none, &[]);
    assert!(html.contains("no setup keeps the limits"));
    assert!(!html.contains("<figure"));
}
