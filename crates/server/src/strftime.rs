//! `strftime` for chat templates.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Formats a UTC time, given in seconds since the Unix epoch, like C's `strftime`. `%-d` omits padding;
/// unknown directives are copied unchanged.
pub(crate) fn strftime(format: &str, seconds: u64) -> String {
    let (mut day, time) = (seconds / 86_400, seconds % 86_400);
    let weekday = WEEKDAYS[((day + 4) % 7) as usize]; // 1970-01-01 was a Thursday.
    let mut year = 1970;
    while day >= days_in_year(year) {
        day -= days_in_year(year);
        year += 1;
    }
    let day_of_year = day + 1;
    let mut month = 0;
    while day >= days_in_month(year, month) {
        day -= days_in_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let month_name = MONTHS[month];
    let expand = |directive: char| {
        Some(match directive {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{:02}", month + 1),
            'd' => format!("{:02}", day + 1),
            'e' => format!("{:2}", day + 1),
            'j' => format!("{day_of_year:03}"),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'F' => format!("{year}-{:02}-{:02}", month + 1, day + 1),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    };
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let unpadded = after.strip_prefix('-');
        let directive = unpadded.unwrap_or(after).chars().next();
        let Some((directive, text)) = directive.and_then(|d| Some((d, expand(d)?))) else {
            out.push('%');
            rest = after;
            continue;
        };
        out.push_str(match unpadded {
            Some(_) => text.trim_start_matches(['0', ' ']),
            None => &text,
        });
        rest = &unpadded.unwrap_or(after)[directive.len_utf8()..];
    }
    out + rest
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_gnu_date() {
        // date -u -d @N '+%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d'
        for (seconds, expected) in [
            (0, "01 Jan 1970|Thursday|001|00:00:00|12 AM|1"),
            (951_782_399, "28 Feb 2000|Monday|059|23:59:59|11 PM|28"),
            (951_782_400, "29 Feb 2000|Tuesday|060|00:00:00|12 AM|29"),
            (1_735_689_599, "31 Dec 2024|Tuesday|366|23:59:59|11 PM|31"),
            (1_735_689_600, "01 Jan 2025|Wednesday|001|00:00:00|12 AM|1"),
            (4_107_542_400, "01 Mar 2100|Monday|060|00:00:00|12 AM|1"),
        ] {
            let format = "%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d";
            assert_eq!(strftime(format, seconds), expected);
        }
    }

    #[test]
    fn unknown_directives_are_copied() {
        assert_eq!(strftime("100%% of é %Q%", 0), "100% of é %Q%");
        assert_eq!(strftime("%-é%", 0), "%-é%");
    }
}
