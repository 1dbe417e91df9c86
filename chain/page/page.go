// Package page shows a chain in a browser: versions, vats by state, the rollout block by block, queues and failures. Pages are whole without
// JavaScript, and load themselves anew; with it they follow the chain.
package page

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

//go:embed *.html style.css live.js
var files embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"number": humanize.Comma, "short": short, "bars": bars, "mark": mark, "kinds": kinds, "count": count[int64], "countInt": count[int],
}).ParseFS(files, "*.html"))

// Most is how much a page shows.
var Most = chain.Most{Vats: 500, Blocks: 60, Steps: 12}

// waiting is how many waiting deliveries and spans the page of a vat shows.
const waiting = 50

// Handler returns the pages of a chain, whose node may be another process. Nothing can be changed by them.
func Handler(s *swingstore.Store) http.Handler {
	r := &s.Reader
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, req *http.Request) {
		v, err := chain.Look(req.Context(), r, Most)
		show(w, "chain.html", v, err)
	})
	mux.HandleFunc("GET /vat/{id}", func(w http.ResponseWriter, req *http.Request) {
		v, err := chain.LookAt(req.Context(), r, req.PathValue("id"), waiting)
		show(w, "vat.html", v, err)
	})
	mux.HandleFunc("GET /block/{height}", func(w http.ResponseWriter, req *http.Request) {
		height, err := strconv.ParseInt(req.PathValue("height"), 10, 64)
		if err != nil {
			err = fmt.Errorf("%q: %w", req.PathValue("height"), chain.ErrNoBlock)
			show(w, "block.html", nil, err)
			return
		}
		v, err := lookAtBlock(req.Context(), r, height)
		show(w, "block.html", v, err)
	})
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, req *http.Request) { live(w, req, r) })
	for name, kind := range map[string]string{"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"} {
		content, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Write(content)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, req)
	})
}

// show writes a page, whole or not at all.
func show(w http.ResponseWriter, name string, v any, err error) {
	status := http.StatusOK
	if err != nil {
		var unknown *upgrade.UnknownVatError
		if status = http.StatusInternalServerError; errors.As(err, &unknown) || errors.Is(err, chain.ErrNoBlock) {
			status = http.StatusNotFound
		}
		name, v = "problem.html", err.Error()
	}
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

type blockView struct {
	*chain.Block
	Events []upgrade.Event
	Last   int64 // height of the last block
}

func lookAtBlock(ctx context.Context, r *swingstore.Reader, height int64) (*blockView, error) {
	b, err := chain.ReadBlock(ctx, r, height)
	if err != nil {
		return nil, err
	}
	v := &blockView{Block: b}
	if v.Events, err = chain.Events(ctx, r, height); err != nil {
		return nil, err
	}
	v.Last, _, err = chain.Head(ctx, r)
	return v, err
}

func (v *blockView) Before() int64 { return v.Height - 1 }
func (v *blockView) After() int64  { return v.Height + 1 }

// live sends the height whenever it changes, as server-sent events.
func live(w http.ResponseWriter, req *http.Request, r *swingstore.Reader) {
	w.Header().Set("Content-Type", "text/event-stream")
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	control := http.NewResponseController(w)
	for last := int64(-1); ; {
		height, _, err := chain.Head(req.Context(), r)
		if err != nil {
			return
		}
		if height != last {
			if _, err := fmt.Fprintf(w, "data: %d\n\n", height); err != nil {
				return
			}
			last = height
		} else if _, err := fmt.Fprint(w, ":\n\n"); err != nil { // to learn that nobody listens
			return
		}
		if control.Flush() != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-req.Context().Done():
			return
		}
	}
}

// count writes a number with its noun.
func count[N int | int64](n N, noun string) string { return english.Plural(int(n), noun, "") }

// short returns the beginning of a digest.
func short(s string) string {
	if len(s) <= 12 {
		return s
	}
	return s[:12]
}

// bar is a part of a bar, in thousandths of its length.
type bar struct {
	Name  string
	Count int64
	X, W  float64
}

// bars divides a bar by how many there are of each name: name, count, name, count, …
func bars(pairs ...any) (all []bar) {
	total := int64(0)
	for i := 1; i < len(pairs); i += 2 {
		total += pairs[i].(int64)
	}
	x := 0.0
	for i := 0; i < len(pairs) && total > 0; i += 2 {
		n := pairs[i+1].(int64)
		b := bar{pairs[i].(string), n, x, float64(n) * 1000 / float64(total)}
		x += b.W
		all = append(all, b)
	}
	return all
}

// mark returns what colours a state.
func mark(state any) string {
	switch fmt.Sprint(state) {
	case string(upgrade.Active), string(upgrade.Done), string(chain.Accepted):
		return "good"
	case string(upgrade.Suspended), string(upgrade.Held), string(upgrade.Aborted), string(chain.Refused):
		return "bad"
	case string(upgrade.Upgrading), string(upgrade.Running), string(upgrade.Paused), string(chain.Early):
		return "busy"
	}
	return "over"
}

type kindCount struct {
	Kind  upgrade.Kind
	Count int
}

// kinds counts deliveries by kind, in the order in which they first come.
func kinds(all []upgrade.Delivery) (counts []kindCount) {
next:
	for _, d := range all {
		for i := range counts {
			if counts[i].Kind == d.Kind {
				counts[i].Count++
				continue next
			}
		}
		counts = append(counts, kindCount{d.Kind, 1})
	}
	return counts
}
