package printable

import "testing"

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"":                           "",
		"two words, ∀ of 日本":         "two words, ∀ of 日本",
		"\x1b[2Jgone\r\n\tx":         `\u001b[2Jgone\u000d\u000a\u0009x`,
		"left\u202eright \U000e0041": `left\u202eright \udb40\udc41`,
		"\xff":                       "\ufffd",
	} {
		if got := Text(s); got != want {
			t.Errorf("%q is written %q, expected %q", s, got, want)
		}
	}
}
