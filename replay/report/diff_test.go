package report

import (
	"strings"
	"testing"

	"github.com/enginery/enginery/replay"
)

func TestDiff(t *testing.T) {
	for _, test := range []struct{ name, expected, got, want string }{
		{"a number", "15262", "15259", "-152[62]\n+152[59]"},
		{"a short syscall", `["vatstoreGet","vom.o+d10/1"]`, `["vatstoreGet","vom.o+d10/2"]`, "-[\"vatstoreGet\", \"vom.o+d10/[1]\"]\n+[\"vatstoreGet\", \"vom.o+d10/[2]\"]"},
		{"JSON in a string", `["vatstoreSet","vom.o+d10/1","{\"owner\":{\"body\":\"#\\\"someone whose name is long\\\"\",\"slots\":[]},\"balance\":{\"body\":\"#\\\"+7\\\"\",\"slots\":[]}}"]`,
			`["vatstoreSet","vom.o+d10/1","{\"owner\":{\"body\":\"#\\\"someone whose name is long\\\"\",\"slots\":[]},\"balance\":{\"body\":\"#\\\"+0\\\"\",\"slots\":[]}}"]`,
			" json {\n -    \"balance\": {\"body\": \"#\\\"+[7]"},
		{"CapData", `["send","o+1",{"methargs":{"body":"#[\"deposit\",[\"+1\"],\"and something that is rather long\",\"and more\"]"}}]`,
			`["send","o+1",{"methargs":{"body":"#[\"withdraw\",[\"+1\"],\"and something that is rather long\",\"and more\"]"}}]`, "-      \"body\": json # [\"[deposit]\", [\"+1\"], \"and"},
		{"nothing expected", "", `["exit",false,null]`, `+["exit", false, null]`},
		{"nothing there", `["exit",false,null]`, "", `-["exit", false, null]`},
		{"in what JSON does not say", `{"a": 1}`, `{"a":1}`, "-{\"a\":[ ]1}\n+{\"a\":1}"},
		{"no JSON", "error", "ok", "-[error]\n+[ok]"},
		{"shortened", `["vatstoreSet","x","abc … def`, `["vatstoreSet","x","abc … dxf`, "d[e]f"},
		{"what cannot be seen", "a\u202eb", "a\u200bb", `-a\u20[2e]b`},
		{"numbers as they stand", `[1.50,1e3]`, `[1.5,1000]`, "-[1.5[0, 1e3]]\n+[1.5[, 1000]]"},
		{"letters of several bytes", `["ä"]`, `["ö"]`, "-[\"[ä]\"]\n+[\"[ö]\"]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b strings.Builder
			for _, l := range diffOf(replay.Difference{Expected: test.expected, Got: test.got}) {
				b.WriteString(l.Op + l.Before)
				if l.Marked != "" {
					b.WriteString("[" + l.Marked + "]")
				}
				b.WriteString(l.After + "\n")
			}
			for want := range strings.SplitSeq(test.want, "\n ") {
				contains(t, b.String(), want)
			}
		})
	}
}

// What is nested beyond measure is not set out, which would take space as the square of it.
func TestDiffIsBounded(t *testing.T) {
	deep := strings.Repeat("[", 2000) + strings.Repeat("]", 2000)
	size := 0
	for _, l := range diffOf(replay.Difference{Expected: deep, Got: deep[:3999]}) {
		size += len(l.Before + l.Marked + l.After)
	}
	if size > 10_000 {
		t.Errorf("the diff of 8 KB has %d bytes", size)
	}
}

func TestDescribe(t *testing.T) {
	for delivery, want := range map[string]string{
		`["message","o+0",{"methargs":{"body":"#[\"open\",[\"owner 1\"]]","slots":[]},"result":"p-62"}]`: "message open to o+0",
		`["message","o+0",{"methargs":{"body":"[{\"@qclass\":\"symbol\"}]","slots":[]}}]`:                `message {"@qclass":"symbol"} to o+0`,
		`["message","o+0",{"methargs":{"body":"no JSON"}}]`:                                              "message to o+0",
		`["notify",[["p-60",{"state":1}]]]`:                                                              "notify",
		`["startVat",{"body":"#{\"currency`:                                                              "startVat",
		`["bringOutYourDead"]`:                                                                           "bringOutYourDead",
		``:                                                                                               "",
		`[1]`:                                                                                            "",
	} {
		if got := describe(delivery); got != want {
			t.Errorf("%s is described as %q, expected %q", delivery, got, want)
		}
	}
}

func TestWords(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{count(1, "delivery"), "1 delivery"},
		{count(2, "delivery"), "2 deliveries"},
		{count(12345, "status"), "12,345 statuses"},
		{count(0, "span"), "0 spans"},
		{ratio(5, 5), "1"},
		{ratio(0, 0), "–"},
		{ratio(10, 5), "2.000"},
		{ratio(15259, 15262), "0.99980"},
		{ratio(99999999, 100000000), "0.999999990"},
		{changed(15262, 15259), "−3, −0.0197 %"},
		{changed(5, 10), "+5, +100 %"},
		{size(0), "–"},
		{size(13 << 20), "13 MiB"},
		{duration(0), "–"},
		{duration(0.0123), "12 ms"},
		{duration(59.96), "60.0 s"},
		{duration(3723), "1h2m3s"},
		{short(36_037_084), "36M"},
		{short(209_890), "210k"},
		{short(0), "0"},
	} {
		if test.got != test.want {
			t.Errorf("%q, expected %q", test.got, test.want)
		}
	}
}
