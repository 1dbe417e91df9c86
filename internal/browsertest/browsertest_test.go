package browsertest

import (
	"bytes"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

const page = `<!doctype html><title>t</title><meta name="viewport" content="width=device-width, initial-scale=1">
<style>p { color: rgb(1, 1, 1) } @media (prefers-color-scheme: dark) { p { color: rgb(2, 2, 2) } } @media print { p { color: rgb(3, 3, 3) } }</style>
<p>plain</p><div style="width: 500px; height: 1px"></div><script>document.querySelector("p").textContent = "scripted"</script>`

func TestOpen(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte(page))
	}))
	defer server.Close()
	for _, test := range []struct {
		view         View
		text, colour string
		overflow     bool
	}{
		{View{}, "scripted", "rgb(1, 1, 1)", false},
		{View{Width: Phone, Height: 640, Dark: true}, "scripted", "rgb(2, 2, 2)", true},
		{View{Print: true, NoScript: true}, "plain", "rgb(3, 3, 3)", false},
	} {
		p := Open(t, server.URL, test.view)
		if got := p.Text(); got != test.text {
			t.Errorf("%+v: text %q, want %q", test.view, got, test.text)
		}
		if colour := Eval[string](p, `getComputedStyle(document.querySelector("p")).color`); colour != test.colour {
			t.Errorf("%+v: colour %s, want %s", test.view, colour, test.colour)
		}
		if n := p.Overflow(); (n > 0) != test.overflow {
			t.Errorf("%+v: overflow %d", test.view, n)
		}
		file := filepath.Join(t.TempDir(), "page.png")
		p.Screenshot(file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.Decode(bytes.NewReader(b)); err != nil {
			t.Error(err)
		}
	}
}
