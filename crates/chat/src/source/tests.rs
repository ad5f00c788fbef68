use super::*;

fn prepared(source: &str) -> String {
    prepare(source, &SyntaxConfig::default(), false).unwrap().0
}

#[test]
fn marked_generation_blocks_keep_their_white_space_control() {
    for (source, expected) in [
        (
            "{%- generation -%}x{% endgeneration %}",
            "{%- with %}{% filter __generation__ -%}x{% endfilter %}{% endwith %}",
        ),
        (
            "{% generation %}x{%- endgeneration -%}",
            "{% with %}{% filter __generation__ %}x{%- endfilter %}{% endwith -%}",
        ),
    ] {
        let (prepared, uses) = prepare(source, &SyntaxConfig::default(), true).unwrap();
        assert_eq!((prepared.as_str(), uses.has_generation), (expected, true));
    }
    let (_, uses) = prepare("{# {% generation %} #}", &SyntaxConfig::default(), true).unwrap();
    assert!(!uses.has_generation);
}

#[test]
fn generation_tags_are_replaced_only_where_they_are_tags() {
    for (source, expected) in [
        (
            "{% generation %}x{% endgeneration %}",
            "{% with %}x{% endwith %}",
        ),
        (
            "{%- generation -%}\nx{%+ endgeneration %}",
            "{%- with -%}\nx{%+ endwith %}",
        ),
        ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
        (
            "{% set a = \"{% generation %}\" %}",
            "{% set a = \"{% generation %}\" %}",
        ),
        ("{# {% generation %} #}", "{# {% generation %} #}"),
        (
            "{% raw %}{% generation %}{% endraw %}",
            "{% raw %}{% generation %}{% endraw %}",
        ),
        (
            "{% raw %}{% endraw ( {% endraws %}{%- endraw -%}{% generation %}{% endgeneration %}",
            "{% raw %}{% endraw ( {% endraws %}{%- endraw -%}{% with %}{% endwith %}",
        ),
        (
            "{{ {'a': {'b': 1}} }}{ % generation",
            "{{ {'a': {'b': 1}} }}{ % generation",
        ),
    ] {
        assert_eq!(prepared(source), expected);
    }
}

#[test]
fn long_templates_of_unclosed_tags_are_rejected_quickly() {
    for (start, part) in [
        ("", "{%"),
        ("", "{%-"),
        ("", "{% ( %}"),
        ("", "{% '\n"),
        ("", "{{"),
        ("", "{#\n"),
        ("{% raw %}", "{%\n"),
        ("{% raw %}", "{% \n"),
        ("{% raw %}", "{%- endraw \n"),
        ("{% raw %}", "{{%\n"),
    ] {
        let source = start.to_owned() + &part.repeat((1 << 20) / part.len());
        let begin = std::time::Instant::now();
        assert!(
            prepare(&source, &SyntaxConfig::default(), false).is_err(),
            "{part}"
        );
        let seconds = begin.elapsed().as_secs();
        assert!(seconds < 5, "{start}{part}: {seconds} s");
    }
}

#[test]
fn remainders_become_calls() {
    for (source, expected) in [
        ("{{ a % 2 }}", "{{ __remainder__(a , 2) }}"),
        (
            "{{ (a ~ b) % (c, d) }}",
            "{{ __remainder__((a ~ b) , (c, d)) }}",
        ),
        (
            "{{ a % b % c }}",
            "{{ __remainder__(__remainder__(a , b) , c) }}",
        ),
        ("{{ a%b%c }}", "{{ __remainder__(__remainder__(a,b),c) }}"),
        ("{{ 2 * a % b + c }}", "{{ __remainder__(2 * a , b) + c }}"),
        ("{{ a % b * c }}", "{{ __remainder__(a , b) * c }}"),
        (
            "{{ x | f(a % 2) % -b.c[d % e] }}",
            "{{ __remainder__(x | f(__remainder__(a , 2)) , -b.c[__remainder__(d , e)]) }}",
        ),
        (
            "é{% if (loop.index0 % 2 == 0) != ('%s' % x == y) -%}{% endif %}",
            "é{% if (__remainder__(loop.index0 , 2) == 0) != (__remainder__('%s' , x) == y) -%}{% endif %}",
        ),
    ] {
        assert_eq!(prepared(source), expected);
    }
}

#[test]
fn line_ends_become_line_feeds() {
    assert_eq!(prepared("a\r\nb\rc\n"), "a\nb\nc\n");
}

#[test]
fn used_names_are_collected() {
    let source =
        "{% if a is b %}{{ c | d(e.f()) }}{% endif %}{% for x in g(1) if x is h %}{% endfor %}";
    let (_, uses) = prepare(source, &SyntaxConfig::default(), false).unwrap();
    assert_eq!(
        (uses.filters, uses.unknown_methods),
        (vec!["d".into()], vec!["f".into()])
    );
    assert_eq!((uses.tests.len(), uses.functions), (2, vec!["g".into()]));
}
