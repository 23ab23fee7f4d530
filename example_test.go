// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style licence in LICENSE.

package singleflight_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
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

// An HTTP handler that passes on its request's context, and waits for a minute at
// most. A client that goes away fails only its own request; the work is given up
// once all the clients who wait for it have gone.
func ExampleGroup_DoContext() {
	asked, ready := make(chan string, 2), make(chan struct{})
	render := func(ctx context.Context, path string) (string, error) {
		asked <- path
		select {
		case <-ready: // after some time
			return "the page " + path, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}

	var group singleflight.Group
	handler := func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
		defer cancel()
		page, err, _ := group.DoContext(ctx, path, func(ctx context.Context) (any, error) {
			// This is not the handler's ctx: it lasts for as long as anybody waits.
			return render(ctx, path)
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, page)
	}

	get := func(ctx context.Context) <-chan string {
		response := make(chan string)
		go func() {
			w := httptest.NewRecorder()
			handler(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/news", nil))
			response <- fmt.Sprint(w.Code, " ", strings.TrimSpace(w.Body.String()))
		}()
		return response
	}
	ctx, goAway := context.WithCancel(context.Background())
	impatient := get(ctx)
	<-asked
	patient := get(context.Background())
	goAway()
	fmt.Println("impatient client:", <-impatient)
	close(ready)
	fmt.Println("patient client:", <-patient)
	// Output:
	// impatient client: 503 context canceled
	// patient client: 200 the page /news
}

// Results with a type, so that callers need no type assertion.
func ExampleDo() {
	type user struct{ Name string }
	load := func(id string) (*user, error) { // from a database, say
		if id != "42" {
			return nil, errors.New("no user " + id)
		}
		return &user{Name: "Ann"}, nil
	}

	var group singleflight.Group
	for _, id := range []string{"42", "43"} {
		u, err, _ := singleflight.Do(&group, id, func() (*user, error) {
			return load(id)
		})
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(u.Name)
	}
	// Output:
	// Ann
	// no user 43
}

// Calls that ask for other calls, with the context that their function was given.
// If they go round in a ring they get an error, instead of waiting for ever.
func ExampleDoContext() {
	includes := map[string][]string{
		"app.conf":   {"db.conf", "log.conf"},
		"db.conf":    {"log.conf"},
		"left.conf":  {"right.conf"},
		"right.conf": {"left.conf"},
	}

	var group singleflight.Group
	var files func(ctx context.Context, name string) (int, error)
	files = func(ctx context.Context, name string) (int, error) {
		n, err, _ := singleflight.DoContext(ctx, &group, name, func(ctx context.Context) (int, error) {
			n := 1
			for _, include := range includes[name] {
				more, err := files(ctx, include)
				if err != nil {
					return 0, fmt.Errorf("%s: %w", name, err)
				}
				n += more
			}
			return n, nil
		})
		return n, err
	}

	ctx := context.Background()
	fmt.Println(files(ctx, "app.conf"))
	_, err := files(ctx, "left.conf")
	fmt.Println(err)
	fmt.Println(errors.Is(err, singleflight.ErrRecursive))
	// Output:
	// 4 <nil>
	// left.conf: right.conf: singleflight: call would wait for itself
	// true
}

// A panic of the function, recovered by one of those who waited for it, and logged
// with the stack of the panic, which is not that of the caller.
func ExamplePanicError() {
	var buf bytes.Buffer
	logger := log.New(&buf, "", 0)

	var group singleflight.Group
	get := func(key string) (v any, err error) {
		defer func() {
			value := recover()
			e, _ := value.(error)
			var p singleflight.PanicError
			switch {
			case errors.As(e, &p):
				logger.Printf("panic in call of %s: %v\n%s", key, p.Value(), p.Stack())
				err = fmt.Errorf("%s cannot be had", key)
			case value != nil:
				panic(value) // not fn's
			}
		}()
		v, err, _ = group.Do(key, func() (any, error) {
			panic("the index is broken")
		})
		return v, err
	}

	fmt.Println(get("report"))
	line, stack, _ := strings.Cut(buf.String(), "\n")
	fmt.Println(line)
	fmt.Println("stack logged:", strings.Contains(stack, "example_test.go:"))
	// Output:
	// <nil> report cannot be had
	// panic in call of report: the index is broken
	// stack logged: true
}

// A resolver whose caller has lost patience. If it was alone, the lookup is likely
// to be stuck, so that whoever comes next should start another. But if somebody has
// joined, they still wait for it, and newcomers may as well.
func ExampleGroup_ForgetUnshared() {
	answer := make(chan struct{})
	lookup := func(server string) func() (any, error) {
		return func() (any, error) {
			if server == "slow" {
				<-answer
			}
			return "192.0.2.1 from the " + server + " server", nil
		}
	}
	lostPatience, cancel := context.WithCancel(context.Background())
	cancel()

	var group singleflight.Group
	resolve := func(ctx context.Context, host, server string) {
		select {
		case r := <-group.DoChan(host, lookup(server)):
			fmt.Println(host, "is", r.Val)
		case <-ctx.Done():
			fmt.Println(host, "given up, lookup forgotten:", group.ForgetUnshared(host))
		}
	}

	resolve(lostPatience, "alone.example", "slow")
	resolve(context.Background(), "alone.example", "fast")

	patient := group.DoChan("shared.example", lookup("slow"))
	resolve(lostPatience, "shared.example", "slow")
	close(answer)
	fmt.Println("shared.example is", (<-patient).Val)
	// Output:
	// alone.example given up, lookup forgotten: true
	// alone.example is 192.0.2.1 from the fast server
	// shared.example given up, lookup forgotten: false
	// shared.example is 192.0.2.1 from the slow server
}
