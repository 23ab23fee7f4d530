// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package singleflight_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"time"

	"example.com/singleflight"
)

// An HTTP handler in front of a slow backend. A hundred clients ask for the same
// page at once, and the backend is asked for it once.
func Example_httpHandler() {
	const clients = 100

	get := func(url string) (string, error) {
		resp, err := http.Get(url)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", url, resp.Status)
		}
		return string(body), err
	}

	// The backend takes as long as it takes all the clients to come. They have
	// come when DoChan has returned to the handler: from then on they wait for
	// the call.
	var missing sync.WaitGroup
	missing.Add(clients)
	var asked atomic.Int64
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		missing.Wait()
		fmt.Fprint(w, "the page ", r.URL.Path)
	}))
	defer backend.Close()

	var group singleflight.Group
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		page := group.DoChan(path, func() (any, error) {
			return get(backend.URL + path)
		})
		missing.Done()
		select {
		case p := <-page:
			if p.Err != nil {
				http.Error(w, p.Err.Error(), http.StatusBadGateway)
				return
			}
			fmt.Fprint(w, p.Val)
		case <-r.Context().Done():
			// This client has gone. The others still get the page.
		}
	}))
	defer front.Close()

	pages := make(chan string)
	for range clients {
		go func() {
			page, err := get(front.URL + "/news")
			if err != nil {
				log.Fatal(err)
			}
			pages <- page
		}()
	}
	got := make(map[string]int)
	for range clients {
		got[<-pages]++
	}
	fmt.Println("clients served:", got)
	fmt.Println("backend asked:", asked.Load())
	// Output:
	// clients served: map[the page /news:100]
	// backend asked: 1
}

// A Group in front of whatever fills a cache: of the callers who do not find a
// key in it, one loads the value.
func ExampleGroup() {
	var loads atomic.Int64
	load := func(id string) (string, error) { // from a database, say
		loads.Add(1)
		return "user " + id, nil
	}

	var cache sync.Map
	var group singleflight.Group
	user := func(id string) (string, error) {
		if u, ok := cache.Load(id); ok {
			return u.(string), nil
		}
		u, err, _ := group.Do(id, func() (any, error) {
			// Look again: another call may have filled the cache and ended
			// between our look and our Do.
			if u, ok := cache.Load(id); ok {
				return u, nil
			}
			u, err := load(id)
			if err != nil {
				return nil, err
			}
			cache.Store(id, u)
			return u, nil
		})
		if err != nil {
			return "", err
		}
		return u.(string), nil
	}

	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() { fmt.Println(user("42")) })
	}
	callers.Wait()
	fmt.Println("loads:", loads.Load())
	// Output:
	// user 42 <nil>
	// user 42 <nil>
	// user 42 <nil>
	// loads: 1
}

// A caller that waits no longer than it wants. The call goes on without it, and
// who comes while it does still joins.
func ExampleGroup_DoChan() {
	done := make(chan struct{})
	report := func() (any, error) {
		<-done // a long time
		return "the report", nil
	}

	var group singleflight.Group
	select {
	case r := <-group.DoChan("report", report):
		fmt.Println(r.Val, r.Err)
	case <-time.After(time.Millisecond):
		fmt.Println("no report yet")
	}

	patient := group.DoChan("report", report)
	close(done)
	r := <-patient
	fmt.Println(r.Val, r.Err, r.Shared)
	// Output:
	// no report yet
	// the report <nil> true
}

// Forget makes callers who come later start afresh, here since what the call in
// flight has read is out of date.
func ExampleGroup_Forget() {
	var price atomic.Int64
	price.Store(10)

	var group singleflight.Group
	read, done := make(chan struct{}), make(chan struct{})
	early := group.DoChan("price", func() (any, error) {
		p := price.Load()
		close(read)
		<-done // the answer is on its way
		return p, nil
	})
	<-read

	price.Store(12)
	group.Forget("price")
	p, err, shared := group.Do("price", func() (any, error) {
		return price.Load(), nil
	})
	fmt.Println("after the change:", p, err, shared)

	close(done)
	r := <-early
	fmt.Println("before it:", r.Val, r.Err, r.Shared)
	// Output:
	// after the change: 12 <nil> false
	// before it: 10 <nil> false
}
