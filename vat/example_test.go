package vat_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// printer prints what a vat does to others.
type printer struct{}

func (printer) Syscall(_ context.Context, _ *swingstore.Tx, vat string, syscall []byte) ([]byte, error) {
	fmt.Printf("%s: %s\n", vat, syscall)
	return nil, nil
}

// A vat is made of a bundle, gets a message, and is upgraded to another version.
func Example() {
	ctx := context.Background()
	home, err := engines.DefaultHome()
	if err != nil {
		log.Fatal(err)
	}
	store, err := swingstore.Create("swingstore.sqlite")
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	v := vat.New(vat.Options{ID: "v1", Host: printer{}, Engines: vat.InstalledIn(engines.Open(home))})
	defer v.Close()

	bundle, err := os.ReadFile("mint-bundle.json") // of @endo/bundle-source
	if err != nil {
		log.Fatal(err)
	}
	// Vat and message are there together, or neither is.
	err = store.Update(func(tx *swingstore.Tx) error {
		id, err := tx.AddBundle(bundle)
		if err != nil {
			return err
		}
		r, err := v.Create(ctx, tx, vat.Incarnation{Engine: "agoric-upgrade-18", BundleID: id, Name: "mint"})
		if err != nil {
			return err
		}
		if !r.Kept {
			return fmt.Errorf("the vat does not start: %s", r.Problem)
		}
		r, err = v.Deliver(ctx, tx, []byte(`["message","o+0",{"methargs":{"body":"#[\"mint\",[\"+100\"]]","slots":[]},"result":"p-60"}]`))
		if err != nil {
			return err
		}
		if !r.Kept {
			return fmt.Errorf("the message is not taken: %s", r.Problem)
		}
		fmt.Println(r.Meter.Computrons)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	err = store.Update(func(tx *swingstore.Tx) error {
		record, err := tx.Vat(ctx, "v1")
		if err != nil {
			return err
		}
		next := vat.Incarnation{Engine: "agoric-upgrade-22", BundleID: record.BundleID, Parameters: record.Parameters}
		r, err := v.Upgrade(ctx, tx, next, nil)
		if err != nil {
			return err
		}
		if !r.Kept {
			log.Printf("it goes on as it was: %s", r.Problem)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}
