package upgrade_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

// inSQLite calls f with a transaction of a new store on disk.
func inSQLite(b *testing.B, f func(tx *swingstore.Tx)) {
	b.Helper()
	s, err := swingstore.Create(filepath.Join(b.TempDir(), "store"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Update(func(tx *swingstore.Tx) error { f(tx); return nil }); err != nil {
		b.Fatal(err)
	}
}

// What a delivery to a vat that takes it costs, against the one key that must be read for it.
func BenchmarkAdmit(b *testing.B) {
	bench := func(b *testing.B, s upgrade.Store) {
		ctx := b.Context()
		c := upgrade.Open(s, &script{}, 1)
		if err := c.Init(ctx, v16, upgrade.DefaultSettings()); err != nil {
			b.Fatal(err)
		}
		for n := range 1000 {
			if err := c.AddVat(ctx, fmt.Sprintf("v%d", n), false); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		for range 1000 {
			if _, err := s.Get(ctx, upgrade.Prefix+"vat.v500"); err != nil {
				b.Fatal(err)
			}
		}
		read := time.Since(start).Seconds() / 1000
		for b.Loop() {
			if v, err := c.Admit(ctx, "v500", upgrade.Delivery{Kind: upgrade.Message}); err != nil || v.Action != upgrade.Deliver {
				b.Fatal(v, err)
			}
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/read, "reads")
	}
	b.Run("memory", func(b *testing.B) { bench(b, upgrade.NewMemory()) })
	b.Run("SQLite", func(b *testing.B) { inSQLite(b, func(tx *swingstore.Tx) { bench(b, tx) }) })
}

// What a message that waits costs, in and out, against writing and removing its key.
func BenchmarkQueue(b *testing.B) {
	bench := func(b *testing.B, s upgrade.Store) {
		ctx := context.Background()
		settings := upgrade.DefaultSettings()
		settings.Budget.Block.Deliveries, settings.Budget.Block.DeliveryComputrons = 1<<40, 1<<40
		settings.Limits.Turn = 1 << 40
		c := upgrade.Open(s, &script{}, 1)
		if err := c.Init(ctx, v16, settings); err != nil {
			b.Fatal(err)
		}
		if err := c.AddVat(ctx, "v1", false); err != nil {
			b.Fatal(err)
		}
		payload := []byte(`{"type":"message","target":"ko23","msg":{"methargs":{"body":"#[\"deposit\",[\"+100\"]]","slots":[]},"result":"kp77"}}`)
		start := time.Now()
		for n := range 1000 {
			if err := s.Set(fmt.Sprintf("queue.%d", n), string(payload)); err != nil {
				b.Fatal(err)
			}
		}
		for n := range 1000 {
			if err := s.Delete(fmt.Sprintf("queue.%d", n)); err != nil {
				b.Fatal(err)
			}
		}
		bare := time.Since(start).Seconds() / 1000
		b.ResetTimer()
		const messages = 1000
		for range b.N {
			c := upgrade.Open(s, &script{}, 1) // as in a new block
			if err := c.Pause(ctx, "v1"); err != nil {
				b.Fatal(err)
			}
			for range messages {
				if v, err := c.Admit(ctx, "v1", upgrade.Delivery{Kind: upgrade.Message, Payload: payload}); err != nil || v.Action != upgrade.Queue {
					b.Fatal(v, err)
				}
			}
			if err := c.Resume(ctx, "v1"); err != nil {
				b.Fatal(err)
			}
			if r, err := c.EndBlock(ctx, 0); err != nil || r.Deliveries != messages {
				b.Fatal(r, err)
			}
		}
		each := b.Elapsed().Seconds() / float64(b.N) / messages
		b.ReportMetric(each*1e9, "ns/message")
		b.ReportMetric(each/bare, "bare")
	}
	b.Run("memory", func(b *testing.B) { bench(b, upgrade.NewMemory()) })
	b.Run("SQLite", func(b *testing.B) { inSQLite(b, func(tx *swingstore.Tx) { bench(b, tx) }) })
}
